//! The answer to a COMMIT that is lost on the way: whether it was done is looked up, and told as it is.

use super::*;
use crate::support::site::wait_for;
use crate::support::stores::postgres::PostgresDatabase;
use crate::support::stores::postgres::wire::{Cut, Wire};

/// A daemon whose connections go through a wire.
struct Wired {
    site: Site,
    daemon: Daemon,
    wire: Wire,
    /// Carries the wire.
    _runtime: tokio::runtime::Runtime,
}

fn wired() -> Wired {
    let database = wait_for(PostgresDatabase::create());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let wire = runtime.block_on(async { Wire::to(database.options()) });
    let site = Site::on_database(database);
    std::fs::write(site.path("config.toml"), "[keys]\nretain_old = \"0s\"\n").unwrap();
    let mut command = site.command(["daemon"]);
    command.env("CONTAINARIUM_DATABASE_URL", format!("{}&{}", site.database_url().unwrap(), wire.host()));
    let daemon = site.start_with(command);
    fill(&daemon, 3);
    Wired { site, daemon, wire, _runtime: runtime }
}

#[test]
fn a_key_is_given_up_once_and_told_so_where_the_answer_to_it_is_lost() {
    for cut in [Cut::BeforeThem, Cut::AfterThem] {
        let Wired { site, daemon, wire, _runtime } = wired();
        let kid = rotated(&site, &[])["kid"].as_str().unwrap().to_owned();
        wire.cut_after(b"SET state = 'aborted'", b"COMMIT\0", cut);
        let report = rotated(&site, &["--abort"]);
        assert!(wire.was_cut(), "{cut:?}");
        assert_eq!((report["end"].as_str(), report["kid"].as_str()), (Some("aborted"), Some(&*kid)), "{cut:?}");
        assert!(!staged_file(&site, &kid).exists(), "{cut:?}");
        assert_eq!(phase(&site), "idle");
        check(&daemon, 3);
    }
}

#[test]
fn an_old_key_is_destroyed_once_and_told_so_where_the_answer_to_it_is_lost() {
    for cut in [Cut::BeforeThem, Cut::AfterThem] {
        let Wired { site, daemon, wire, _runtime } = wired();
        let old = active(&daemon);
        rotated(&site, &WAIVE);
        wire.cut_after(b"SET state = 'destroyed'", b"COMMIT\0", cut);
        let report = rotated(&site, &["--destroy-old", "--yes", WAIVE[0], WAIVE[1]]);
        assert!(wire.was_cut(), "{cut:?}");
        assert_eq!(report["end"], "destroyed", "{cut:?}");
        assert!(!staged_file(&site, &old).exists(), "{cut:?}");
        assert_eq!(site.number("SELECT count(*) FROM escrows WHERE kind = 'waiver'"), 2, "one for each key: {cut:?}");
        check(&daemon, 3);
    }
}
