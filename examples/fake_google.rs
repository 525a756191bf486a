//! A fake of Google's services, over real HTTP, to try backups by hand: `cargo run --example fake_google`.
//!
//! It prints an address for each identity and the environment for `gcloud`; docs/development.md says how to use them. It is for this
//! host and for tests: it keeps everything in memory, and whoever connects to an identity's port is that identity.

#[path = "fake_google/fake.rs"]
mod fake;

use std::io::Write;

use anyhow::{Context, Result};

fn main() -> Result<()> {
    let first_port = match std::env::args().nth(1) {
        Some(text) => text.parse().context("usage: fake_google [FIRST_PORT]; 8780 if absent, any free ports if 0")?,
        None => 8780,
    };
    let fake = fake::Fake::start(first_port)?;
    let mut out = std::io::stdout().lock();
    for (identity, address) in fake.addresses() {
        writeln!(out, "{identity:<8} http://{address}")?;
    }
    writeln!(out, "Ctrl-C ends it; see docs/development.md, \"A fake of Google\".")?;
    out.flush()?;
    loop {
        std::thread::park();
    }
}
