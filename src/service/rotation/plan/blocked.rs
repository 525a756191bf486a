//! Why a rotation does not go on.

use super::super::Damaged;
use crate::keys::start::BringBack;
use crate::model::{KeyPhase, Kid, MasterKeyState, Micros, NodeId, NodeRecord};
use crate::service::backup::{SEEN_LATELY, Trouble};

/// Why it does not go on. The message names the one command that mends it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::service::rotation) enum Blocked {
    #[error("{0}")]
    Regressed(String),
    #[error(
        "the database's own keys do not fit together: {0}. Restore the tables `master_keys` and `key_state` from a backup"
    )]
    Corrupt(String),
    #[error(
        "node {node} carries a rotation until {until}; watch it there with `containarium admin rotate-master --resume`"
    )]
    Busy { node: NodeId, until: Micros },
    #[error(
        "a rotation to {0} is staged already: go on with `containarium admin rotate-master --resume`, or give it up with `containarium \
         admin rotate-master --abort`"
    )]
    StagedAlready(Kid),
    #[error("a rotation is under way (phase {0}): it goes on with `containarium admin rotate-master --resume`")]
    UnderWay(KeyPhase),
    #[error("the staged key was given up meanwhile; start again with `containarium admin rotate-master`")]
    GivenUp,
    #[error(
        "phase {0}: after the flip the way is forward. Let it end with `containarium admin rotate-master --resume`; if the new key is \
         unwanted, then rotate again with `containarium admin rotate-master`"
    )]
    PastTheFlip(KeyPhase),
    #[error("nothing is staged, so there is nothing to give up; `containarium admin status` shows the phase")]
    NothingStaged,
    #[error(
        "master key {0} is not loaded here: bring it here, {bring}, then go on with `containarium admin rotate-master --resume`",
        bring = BringBack(*.0)
    )]
    NotLoaded(Kid),
    #[error(
        "the file of the staged key {0} is not on this node: go on where it lies; or bring it here, {bring}; or give it up with \
         `containarium admin rotate-master --abort`",
        bring = BringBack(*.0)
    )]
    NoStagedFile(Kid),
    #[error(
        "no copy of the new master key, {kid}, is confirmed in Secret Manager, so it was not made active: {}. Mend that, then go on with \
         `containarium admin rotate-master --resume`; or prove another copy of it, which `--resume --escrow prove` asks for; or give it up with \
         `containarium admin rotate-master --abort`",
        .trouble.why
    )]
    NotPushed { kid: Kid, trouble: Trouble },
    #[error(
        "the copy holds master key {found}, and {wanted} is wanted: feed that one with the same command, `containarium admin rotate-master … \
         --prove-from FILE`"
    )]
    WrongCopy { found: Kid, wanted: Kid },
    #[error("there is no node {0}; `containarium admin nodes` lists them")]
    UnknownNode(NodeId),
    #[error(
        "waiting for nodes: {}. They are not live and do not hold the new key. Start them; or, for one that is only away, add {}; one \
         that is gone for good is taken off with `containarium admin nodes forget ID`",
        ids(.nodes), without(.nodes)
    )]
    LostNodes { nodes: Vec<NodeRecord> },
    #[error("{}", damage(.deks, *.more))]
    Damage { deks: Vec<Damaged>, more: u64 },
    #[error(
        "{0} DEKs stay under the old key although nothing is wrong with them; the daemon's log says more. Go on with `containarium admin \
         rotate-master --resume`"
    )]
    NoProgress(u64),
    #[error("{0}. Mend that, then go on with `containarium admin rotate-master --resume`")]
    Promotion(String),
    #[error(
        "the verification could not be done: {0}. Mend that, then go on with `containarium admin rotate-master --resume`"
    )]
    Verification(String),
    #[error("master key {0} is unknown; `containarium admin status` lists the keys")]
    UnknownKey(Kid),
    #[error(
        "master key {kid} is {state}, and only a retired one is destroyed; `containarium admin status` lists the keys"
    )]
    NotRetired { kid: Kid, state: MasterKeyState },
    #[error(
        "master key {kid} opens the database backups of its time: not before {at} (`[keys] retain_old`). Then: `containarium admin rotate-master --destroy-old`"
    )]
    TooEarly { kid: Kid, at: Micros },
    #[error(
        "no copy of master key {0} off the host was read back: read the one in Secret Manager back with `containarium backup verify`, or feed \
         one with `containarium admin rotate-master --destroy-old --prove-from FILE`, or say that there is to be none with `--escrow waive-off-host-copy`"
    )]
    NotReadBack(Kid),
    #[error(
        "the copy of master key {kid} that was read back, {locator}, was last seen at {seen}, and whether it is still there cannot be looked at: \
         {why}. A key is destroyed for good only where such a copy was seen, or read, within {} days: mend that, or read it back with \
         `containarium backup verify`; then again `containarium admin rotate-master --destroy-old`, with --prove-from FILE for a copy elsewhere, \
         or say that there is to be none with `--escrow waive-off-host-copy`",
        SEEN_LATELY.as_secs() / 86_400
    )]
    NotSeen { kid: Kid, locator: String, seen: Micros, why: String },
    #[error(
        "{deks} quarantined DEKs are under master key {kid} and would be lost: release them with `containarium admin quarantine TENANT \
         DEK_VERSION --release`, or shred their tenants"
    )]
    Quarantined { kid: Kid, deks: u64 },
}

fn ids(nodes: &[NodeRecord]) -> String {
    nodes.iter().map(|node| node.node.to_string()).collect::<Vec<_>>().join(", ")
}

fn without(nodes: &[NodeRecord]) -> String {
    nodes.iter().map(|node| format!("--without-node {}", node.node)).collect::<Vec<_>>().join(" ")
}

fn damage(deks: &[Damaged], more: u64) -> String {
    let mut text: Vec<String> = deks.iter().map(ToString::to_string).collect();
    if more > 0 {
        text.push(format!("and {more} more"));
    }
    if deks.iter().any(|damaged| damaged.version.is_none()) {
        return format!(
            "{}. Set such a secret anew or destroy that version, or set a DEK aside with `containarium admin quarantine TENANT \
             DEK_VERSION`; then go on with `containarium admin rotate-master --resume`",
            text.join("; ")
        );
    }
    let first = deks.first().map_or_else(
        || "TENANT DEK_VERSION".to_owned(),
        |first| {
            format!("{} {}", first.tenant, first.version.map_or_else(|| "DEK_VERSION".to_owned(), |v| v.to_string()))
        },
    );
    format!(
        "{}. Restore that row of the table `deks` from a backup, or set it aside with `containarium admin quarantine {first}`; then go on \
         with `containarium admin rotate-master --resume`",
        text.join("; ")
    )
}
