//! The chain of one file: what is added to each record so that none can be changed, removed or moved unseen.

use std::sync::Arc;

use super::record::{End, Kind, Start};
use crate::crypto::{ChainKey, Mac};
use crate::model::{BootId, Micros, NodeId};

/// Whose chain it is: a node, and a start of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    pub node: NodeId,
    pub boot: BootId,
}

/// How far a chain has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub started_at: Micros,
    pub previous: Option<End>,
    pub end: End,
    pub key: u64,
}

/// A chain on its way. A clone runs ahead; it takes the original's place once what it chained is durable.
#[derive(Clone)]
pub(super) struct Chain {
    origin: Origin,
    key: Arc<ChainKey>,
    previous: Option<End>,
    started_at: Option<Micros>,
    n: u64,
    link: Mac,
    /// The members that every record gets, but for the number.
    members: Arc<[u8]>,
}

impl Chain {
    /// A chain that follows the node's previous one, where that is known.
    pub(super) fn new(origin: Origin, key: Arc<ChainKey>, previous: Option<End>) -> Self {
        let members = members(origin, &key);
        let link = previous.map_or(Mac::NONE, |end| end.link);
        Self { origin, key, previous, started_at: None, n: 0, link, members }
    }

    /// Goes on under another version of the key.
    pub(super) fn under(&self, key: Arc<ChainKey>) -> Self {
        let members = members(self.origin, &key);
        Self { key, members, ..self.clone() }
    }

    /// Begins the chain, where it has not begun.
    pub(super) fn start(&mut self, at: Micros, out: &mut Vec<u8>) {
        if self.started_at.is_some() {
            return;
        }
        let mut line = Vec::new();
        Start { kind: Kind::File, previous: self.previous }.write_line(at, &mut line);
        self.add(&line, out);
        self.started_at = Some(at);
    }

    /// Appends lines, each a JSON object, with what authenticates them.
    pub(super) fn add(&mut self, lines: &[u8], out: &mut Vec<u8>) {
        for line in lines.split(|byte| *byte == b'\n') {
            let Some(open) = line.strip_suffix(b"}") else { continue };
            let from = out.len();
            self.n += 1;
            out.extend_from_slice(open);
            out.extend_from_slice(&self.members);
            out.extend_from_slice(self.n.to_string().as_bytes());
            out.push(b'}');
            let mac = self.key.mac(out.get(from..).unwrap_or_default());
            self.link = self.key.link(self.link, mac);
            out.pop();
            for (name, value) in [(&br#","mac":""#[..], mac), (&br#"","link":""#[..], self.link)] {
                out.extend_from_slice(name);
                let mut hex = [0; 64];
                data_encoding::HEXLOWER.encode_mut(&value.0, &mut hex);
                out.extend_from_slice(&hex);
            }
            out.extend_from_slice(b"\"}\n");
        }
    }

    /// Absent until it has begun.
    pub(super) fn head(&self) -> Option<Head> {
        Some(Head {
            started_at: self.started_at?,
            previous: self.previous,
            end: End { boot: self.origin.boot, n: self.n, link: self.link },
            key: self.key.version().get(),
        })
    }
}

pub(super) fn members(origin: Origin, key: &ChainKey) -> Arc<[u8]> {
    let Origin { node, boot } = origin;
    format!(r#","node":"{node}","boot":"{boot}","key":{},"n":"#, key.version()).into_bytes().into()
}
