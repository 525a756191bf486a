//! What one record says.

use std::net::IpAddr;

use serde::Serialize;

use super::chain::Origin;
use crate::crypto::Mac;
use crate::model::{Action, BootId, Micros, SecretName, SecretVersion, Tenant};

/// How it came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    Invalid,
    NotFound,
    Denied,
    Conflict,
    Precondition,
    TooLarge,
    Unavailable,
    Failed,
}

impl Outcome {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::Conflict => "conflict",
            Self::Precondition => "precondition_failed",
            Self::TooLarge => "too_large",
            Self::Unavailable => "unavailable",
            Self::Failed => "failed",
        }
    }
}

/// One record. Its fields are an allow-list: there is no room for a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub at: Micros,
    pub request_id: String,
    /// As `access` names callers: `uid:0`.
    pub identity: String,
    /// The peer's process id, where there is one.
    pub pid: Option<i32>,
    /// Whence the caller came over TCP.
    pub address: Option<IpAddr>,
    pub action: Action,
    pub tenant: Option<Tenant>,
    pub name: Option<SecretName>,
    pub version: Option<SecretVersion>,
    /// The public id of the token that was made or revoked.
    pub token: Option<String>,
    /// The SHA-256 of the sealed version that a change put there.
    pub blob: Option<[u8; 32]>,
    /// And of the one that it replaced.
    pub replaces: Option<[u8; 32]>,
    pub outcome: Outcome,
    /// How many calls the record stands for: more than one only where a caller is turned away again and again.
    pub count: u64,
}

impl Record {
    /// Appends the record as one line of JSON, without what the chain adds to it.
    pub(super) fn write_line(&self, out: &mut Vec<u8>) {
        #[derive(Serialize)]
        struct Line<'a> {
            time: String,
            #[serde(rename = "requestId")]
            request_id: &'a str,
            identity: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            pid: Option<i32>,
            #[serde(skip_serializing_if = "Option::is_none")]
            address: Option<IpAddr>,
            action: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            tenant: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            name: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            version: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            token: Option<&'a str>,
            outcome: &'a str,
            #[serde(rename = "blobSha256", skip_serializing_if = "Option::is_none")]
            blob: Option<String>,
            #[serde(rename = "replacesSha256", skip_serializing_if = "Option::is_none")]
            replaces: Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            count: Option<u64>,
        }
        let line = Line {
            time: self.at.to_string(),
            request_id: &self.request_id,
            identity: &self.identity,
            pid: self.pid,
            // One that is mapped into IPv6 is the IPv4 address that operators know.
            address: self.address.map(|address| address.to_canonical()),
            action: self.action.as_str(),
            tenant: self.tenant.as_ref().map(Tenant::as_str),
            name: self.name.as_ref().map(SecretName::as_str),
            version: self.version.map(SecretVersion::get),
            token: self.token.as_deref(),
            outcome: self.outcome.as_str(),
            blob: self.blob.map(|sha| data_encoding::HEXLOWER.encode(&sha)),
            replaces: self.replaces.map(|sha| data_encoding::HEXLOWER.encode(&sha)),
            count: (self.count > 1).then_some(self.count),
        };
        write_json(&line, out);
    }
}

/// Records that are missing from the file, since they could not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gap {
    /// When the first of them was to be written.
    pub(super) since: Micros,
    pub(super) records: u64,
}

impl Gap {
    /// Appends the gap as one line of JSON.
    pub(super) fn write_line(&self, at: Micros, out: &mut Vec<u8>) {
        #[derive(Serialize)]
        struct Line {
            time: String,
            action: &'static str,
            since: String,
            records: u64,
            outcome: &'static str,
        }
        let line = Line {
            time: at.to_string(),
            action: "audit.gap",
            since: self.since.to_string(),
            records: self.records,
            outcome: Outcome::Failed.as_str(),
        };
        write_json(&line, out);
    }
}

/// The action of the record that the trail in the database is not as it was written.
pub(super) const CHANGED: &str = "audit.changed";
/// The action of the record that the table takes records again which the file took meanwhile.
pub(super) const RESUMED: &str = "audit.resumed";

pub(super) fn write_changed(at: Micros, out: &mut Vec<u8>) {
    write_of_table(at, CHANGED, Outcome::Failed, out);
}

pub(super) fn write_resumed(at: Micros, out: &mut Vec<u8>) {
    write_of_table(at, RESUMED, Outcome::Ok, out);
}

fn write_of_table(at: Micros, action: &str, outcome: Outcome, out: &mut Vec<u8>) {
    #[derive(Serialize)]
    struct Line<'a> {
        time: String,
        identity: &'static str,
        action: &'a str,
        chain: &'static str,
        outcome: &'static str,
    }
    let line = Line {
        time: at.to_string(),
        identity: "daemon",
        action,
        chain: Kind::Table.as_str(),
        outcome: outcome.as_str(),
    };
    write_json(&line, out);
}

/// The action of a record of how far the other chain of the same start has come.
pub(super) const HEAD: &str = "audit.head";
/// The action of a record of up to where a chain's records may be absent.
pub const PRUNE: &str = "audit.prune";

/// A place in a chain that a record speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) kind: Kind,
    /// Whose chain, where it is not one of the record's own start.
    pub(super) of: Option<Origin>,
    pub(super) position: u64,
    pub(super) link: Mac,
}

impl Spot {
    /// Appends a record of this action as one line of JSON.
    pub(super) fn write_line(&self, action: &'static str, at: Micros, out: &mut Vec<u8>) {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Line {
            time: String,
            identity: &'static str,
            action: &'static str,
            chain: &'static str,
            #[serde(skip_serializing_if = "Option::is_none")]
            of_node: Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            of_boot: Option<String>,
            position: u64,
            position_link: String,
            outcome: &'static str,
        }
        let line = Line {
            time: at.to_string(),
            identity: "daemon",
            action,
            chain: self.kind.as_str(),
            of_node: self.of.map(|of| of.node.to_string()),
            of_boot: self.of.map(|of| of.boot.to_string()),
            position: self.position,
            position_link: self.link.to_string(),
            outcome: Outcome::Ok.as_str(),
        };
        write_json(&line, out);
    }
}

/// The action of a chain's first record.
pub(super) const START: &str = "audit.start";

/// The first record of a chain: whose it is, and what it follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) kind: Kind,
    /// The end of the node's chain before this one; absent where none is known.
    pub(super) previous: Option<End>,
}

/// What a chain is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Table,
}

impl Kind {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Table => "table",
        }
    }
}

/// The last record of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    pub boot: BootId,
    pub n: u64,
    pub link: Mac,
}

impl Start {
    pub(super) fn write_line(&self, at: Micros, out: &mut Vec<u8>) {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Line {
            time: String,
            action: &'static str,
            chain: &'static str,
            #[serde(skip_serializing_if = "Option::is_none")]
            previous_boot: Option<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            previous_n: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            previous_link: Option<String>,
            outcome: &'static str,
        }
        let line = Line {
            time: at.to_string(),
            action: START,
            chain: self.kind.as_str(),
            previous_boot: self.previous.map(|end| end.boot.to_string()),
            previous_n: self.previous.map(|end| end.n),
            previous_link: self.previous.map(|end| end.link.to_string()),
            outcome: Outcome::Ok.as_str(),
        };
        write_json(&line, out);
    }
}

fn write_json(line: &impl Serialize, out: &mut Vec<u8>) {
    let before = out.len();
    if serde_json::to_writer(&mut *out, line).is_err() {
        // Writing text and numbers into memory does not fail; were it to, half a line must not stay.
        out.truncate(before);
        return;
    }
    out.push(b'\n');
}
