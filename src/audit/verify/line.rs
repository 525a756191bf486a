//! A record as it is read.

use serde::Deserialize;

use crate::crypto::Mac;
use crate::model::{BootId, NodeId};
use crate::store::trail::{ChainKind, TrailRow};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::audit) struct Line {
    pub(in crate::audit) time: String,
    pub(in crate::audit) action: String,
    pub(in crate::audit) outcome: String,
    #[serde(default)]
    identity: Option<String>,
    #[serde(default)]
    pub(in crate::audit) tenant: Option<String>,
    #[serde(default)]
    pub(in crate::audit) name: Option<String>,
    #[serde(default)]
    pub(in crate::audit) version: Option<u64>,
    #[serde(default)]
    pub(in crate::audit) token: Option<String>,
    #[serde(default)]
    pub(in crate::audit) blob_sha256: Option<String>,
    #[serde(default)]
    pub(in crate::audit) replaces_sha256: Option<String>,
    #[serde(default)]
    pub(in crate::audit) since: Option<String>,
    #[serde(default)]
    pub(in crate::audit) records: Option<u64>,
    #[serde(default)]
    previous_boot: Option<String>,
    #[serde(default)]
    previous_n: Option<u64>,
    #[serde(default)]
    previous_link: Option<String>,
    #[serde(default)]
    chain: Option<String>,
    #[serde(default)]
    of_node: Option<String>,
    #[serde(default)]
    of_boot: Option<String>,
    #[serde(default)]
    position: Option<u64>,
    #[serde(default)]
    position_link: Option<String>,
    node: String,
    boot: String,
    pub(in crate::audit) key: u64,
    pub(in crate::audit) n: u64,
    #[serde(default)]
    mac: Option<String>,
    #[serde(default)]
    link: Option<String>,
}

/// What a line of a file has that a row has in columns.
pub(in crate::audit) struct Ids {
    pub(in crate::audit) node: NodeId,
    pub(in crate::audit) boot: BootId,
    pub(in crate::audit) mac: Mac,
    pub(in crate::audit) link: Mac,
}

/// A place in a chain that a record speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::audit) struct Mark {
    pub(in crate::audit) chain: (NodeId, BootId, ChainKind),
    pub(in crate::audit) n: u64,
    pub(in crate::audit) link: Mac,
}

impl Line {
    pub(in crate::audit) fn ids(&self) -> Option<Ids> {
        Some(Ids {
            node: NodeId::from_hex(&self.node)?,
            boot: BootId::from_hex(&self.boot)?,
            mac: Mac::from_hex(self.mac.as_deref()?)?,
            link: Mac::from_hex(self.link.as_deref()?)?,
        })
    }

    pub(in crate::audit) fn previous(&self) -> Option<(BootId, u64, Mac)> {
        let boot = BootId::from_hex(self.previous_boot.as_deref()?)?;
        Some((boot, self.previous_n?, Mac::from_hex(self.previous_link.as_deref()?)?))
    }

    /// Of a record that speaks of a chain's place; where it does not say whose, of a chain of its own start.
    pub(in crate::audit) fn mark(&self) -> Option<Mark> {
        let kind = match self.chain.as_deref()? {
            "file" => ChainKind::File,
            "table" => ChainKind::Table,
            _ => return None,
        };
        let node = NodeId::from_hex(self.of_node.as_ref().unwrap_or(&self.node))?;
        let boot = BootId::from_hex(self.of_boot.as_ref().unwrap_or(&self.boot))?;
        let link = Mac::from_hex(self.position_link.as_deref()?)?;
        Some(Mark { chain: (node, boot, kind), n: self.position?, link })
    }

    pub(in crate::audit) fn time(&self) -> Option<jiff::Timestamp> {
        self.time.parse().ok()
    }

    /// The columns are what a search finds by, and nothing authenticates them but this.
    pub(in crate::audit) fn is_what_columns_say(&self, row: &TrailRow) -> bool {
        let blob = row.blob_sha256.map(|sha| data_encoding::HEXLOWER.encode(&sha));
        let identity = self.identity.as_deref().unwrap_or("daemon");
        row.node.to_string() == self.node
            && row.boot.to_string() == self.boot
            && row.number == self.n
            && row.identity == identity
            && row.action == self.action
            && row.outcome == self.outcome
            && row.tenant == self.tenant
            && row.name == self.name
            && row.version == self.version
            && blob == self.blob_sha256
    }
}
