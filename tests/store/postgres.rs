//! What only PostgreSQL can break: locks between sessions, isolation, rights, and a server that goes away.

mod breaking;
mod coalescing;
mod connecting;
mod locking;
mod migrating;
mod outages;
mod rotating;
mod tenant_locks;
