//! What one record says.

use serde::Serialize;

use crate::model::{Action, Micros, SecretName, SecretVersion, Tenant};

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
    pub action: Action,
    pub tenant: Option<Tenant>,
    pub name: Option<SecretName>,
    pub version: Option<SecretVersion>,
    pub outcome: Outcome,
}

impl Record {
    /// Appends the record as one line of JSON.
    pub(super) fn write_line(&self, out: &mut Vec<u8>) {
        #[derive(Serialize)]
        struct Line<'a> {
            time: String,
            #[serde(rename = "requestId")]
            request_id: &'a str,
            identity: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            pid: Option<i32>,
            action: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            tenant: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            name: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            version: Option<u64>,
            outcome: &'a str,
        }
        let line = Line {
            time: self.at.to_string(),
            request_id: &self.request_id,
            identity: &self.identity,
            pid: self.pid,
            action: self.action.as_str(),
            tenant: self.tenant.as_ref().map(Tenant::as_str),
            name: self.name.as_ref().map(SecretName::as_str),
            version: self.version.map(SecretVersion::get),
            outcome: self.outcome.as_str(),
        };
        write_json(&line, out);
    }
}

/// Records that are missing from the file, since they could not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gap {
    /// When the first of them was to be written.
    pub(super) since: Micros,
    pub(super) records: usize,
}

impl Gap {
    /// Appends the gap as one line of JSON.
    pub(super) fn write_line(&self, at: Micros, out: &mut Vec<u8>) {
        #[derive(Serialize)]
        struct Line {
            time: String,
            action: &'static str,
            since: String,
            records: usize,
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

fn write_json(line: &impl Serialize, out: &mut Vec<u8>) {
    let before = out.len();
    if serde_json::to_writer(&mut *out, line).is_err() {
        // Writing text and numbers into memory does not fail; were it to, half a line must not stay.
        out.truncate(before);
        return;
    }
    out.push(b'\n');
}
