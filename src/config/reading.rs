//! The settings that a process needs to read keys and database beside the daemon, as one process hands them to another: over a pipe,
//! since a database's URL holds a password.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Config, Database, DatabaseUrl, Endpoint};

/// A path that is no UTF-8 cannot be written as JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.display())]
pub struct NotText(PathBuf);

/// Where keys and rows are read.
pub struct Reading {
    pub key_file: PathBuf,
    pub database: Database,
    /// For a wrapped key file.
    pub kms_endpoint: Option<String>,
    pub age_identity: Option<PathBuf>,
}

#[derive(Serialize)]
struct Written<'a> {
    key_file: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sqlite: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    postgres: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kms_endpoint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    age_identity: Option<&'a str>,
}

fn text(path: &Path) -> Result<&str, NotText> {
    path.to_str().ok_or_else(|| NotText(path.to_owned()))
}

impl Config {
    /// What [`Reading::parse`] reads back.
    ///
    /// # Errors
    /// [`NotText`].
    pub fn for_reading(&self) -> Result<Zeroizing<Vec<u8>>, NotText> {
        let key_file = text(&self.key_file)?;
        let (sqlite, postgres) = match &self.database {
            Database::Sqlite { path } => (Some(text(path)?), None),
            Database::Postgres { url } => (None, Some(url.text())),
        };
        let kms_endpoint = self.kms_gcp.as_ref().and_then(|kms| kms.endpoint.as_ref()).map(Endpoint::as_str);
        let age_identity = self.age_identity.as_deref().map(text).transpose()?;
        let written = Written { key_file, sqlite, postgres, kms_endpoint, age_identity };
        serde_json::to_vec(&written).map(Zeroizing::new).map_err(|_| NotText(self.key_file.clone()))
    }
}

impl Reading {
    /// # Errors
    /// What is wrong, without a word of what was given.
    pub fn parse(json: &[u8]) -> Result<Self, &'static str> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Read {
            key_file: String,
            sqlite: Option<String>,
            postgres: Option<String>,
            kms_endpoint: Option<String>,
            age_identity: Option<String>,
        }
        let read: Read =
            serde_json::from_slice(json).map_err(|_| "these are not the settings that the daemon hands over")?;
        let database = match (read.sqlite, read.postgres) {
            (Some(path), None) => Database::Sqlite { path: path.into() },
            (None, Some(url)) => Database::Postgres {
                url: DatabaseUrl::parse(&Zeroizing::new(url)).map_err(|_| "the database's URL is none")?,
            },
            _ => return Err("exactly one database is read"),
        };
        Ok(Self {
            key_file: read.key_file.into(),
            database,
            kms_endpoint: read.kms_endpoint,
            age_identity: read.age_identity.map(PathBuf::from),
        })
    }
}
