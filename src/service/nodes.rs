//! The nodes of a database, for operators.

use crate::access::AdminGrant;
use crate::audit::Outcome;
use crate::model::{Action, NodeId, NodeRecord};
use crate::store::Store;
use crate::store::masters::ForgetOutcome;

use super::{Error, Request, Service, Touched};

/// Every node that the database knows, and which of them answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nodes {
    pub this: NodeId,
    /// By id.
    pub nodes: Vec<NodeRecord>,
}

impl Service {
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn nodes(&self, request: &Request, grant: &AdminGrant) -> Result<Nodes, Error> {
        let nodes = self.store.nodes().await.map_err(Error::from);
        let result = nodes.map(|nodes| Nodes { this: self.node.holder().node, nodes });
        let outcome = result.as_ref().map_or_else(Error::outcome, |_| Outcome::Ok);
        self.record(request, grant.identity(), Action::AdminNodes, None, [Touched::nothing(outcome)]).await?;
        result
    }

    /// Forgets a node that is gone for good, so that no rotation waits for it.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] for one that is live; [`Error::Unavailable`].
    pub async fn forget_node(&self, request: &Request, grant: &AdminGrant, node: NodeId) -> Result<(), Error> {
        let change = self.change(request, grant.identity(), Action::AdminForgetNode, None).await?;
        let result = self.forget(change.store(), node).await;
        let touched = |outcome| vec![Touched::nothing(outcome)];
        self.recorded_change(request, grant.identity(), &change, touched, result).await
    }

    async fn forget(&self, store: &dyn Store, node: NodeId) -> Result<(), Error> {
        self.may_change().await?;
        match store.forget_node(node).await? {
            ForgetOutcome::Forgotten => Ok(()),
            ForgetOutcome::Unknown => Err(Error::NotFound(format!("there is no node {node}"))),
            ForgetOutcome::Live(record) => Err(Error::Conflict(format!(
                "node {node} is live, last seen {}; stop its daemon, and forget it 30 seconds later",
                record.seen_at
            ))),
        }
    }
}
