//! Google's services as the rest of the program sees them: [`SecretManager`] and [`Kms`], and no type of Google's libraries.
//!
//! Every call ends within [`Limits::deadline`], credentials, retries and waits in it. A retry is only made of what may be done twice
//! (all calls here may: a version that was added twice is a spare copy). Answers are read up to a bound, redirects are not followed,
//! and payloads have a checksum both ways. Errors carry no word that a server sent, since a server may repeat what it was given. The exchange
//! of credentials for a token is the library's: it reads those answers whole, and of their errors nothing that quotes them is passed on.

mod endpoint;
mod error;
mod kms;
mod kms_error;
mod names;
mod persist;
mod secret_manager;
mod transport;

pub use endpoint::{Endpoint, EndpointError};
pub use error::{Call, GcpError, Reason};
pub use kms::{Decrypted, Encrypted, Kms};
pub use kms_error::{KmsCall, KmsError, KmsTrouble};
pub use names::VersionNumber;
pub use persist::Limits;
pub use secret_manager::{SecretFacts, SecretManager, VersionFacts, VersionState};
