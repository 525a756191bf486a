use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

const NODE: NodeId = NodeId::new([1; 16]);
const DB: [u8; 16] = [7; 16];

fn boot(number: u8) -> BootId {
    BootId::new([number; 16])
}

fn at(epoch: u64, generation: u64) -> Mark {
    Mark { db_id: DB, epoch, generation }
}

fn open(dir: &Path, number: u8) -> (NodeFile, Vec<Notice>) {
    let (file, notices) = NodeFile::open(dir, NodeId::new([number; 16]), boot(number)).unwrap();
    file.enter().unwrap();
    (file, notices)
}

fn blocked(name: &str, shred_at: i64, shredded_at: Option<i64>) -> TenantRecord {
    TenantRecord {
        tenant: Tenant::parse(name).unwrap(),
        created_at: Micros(1),
        shred_at: Some(Micros(shred_at)),
        shredded_at: shredded_at.map(Micros),
        secrets: 0,
        active_dek: None,
    }
}

fn tenant(name: &str) -> Tenant {
    Tenant::parse(name).unwrap()
}

/// A node that has seen generation 5 of epoch 2.
fn seen(dir: &Path) -> NodeFile {
    let (mut file, notices) = open(dir, 1);
    assert_eq!(notices, []);
    file.judge(Some(at(2, 5))).unwrap();
    assert!(file.lacks(at(2, 5)));
    file.note(at(2, 5), Micros(1), &[], &BTreeSet::new()).unwrap();
    assert!(!file.lacks(at(2, 5)));
    file
}

#[test]
fn a_node_keeps_its_id_and_knows_the_processes_before_it_as_dead() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), 1);
    for number in 2..100 {
        let (file, notices) = open(dir.path(), number);
        assert_eq!((file.node(), file.boot(), notices), (NODE, boot(number), Vec::new()));
        assert!((1..number).rev().take(MOST_BOOTS - 1).all(|earlier| file.is_earlier(boot(earlier))));
        assert!(!file.is_earlier(boot(number)));
    }
    assert!(fs::read(dir.path().join(RECORD)).unwrap().len() < 4096);
}

#[test]
fn a_copied_data_directory_trusts_no_earlier_process_and_remembers_the_rest() {
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    seen(dir.path());
    for name in [RECORD, LOG] {
        fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
    }
    let (file, notices) = open(copy.path(), 2);
    assert_eq!(notices, [Notice::Copied]);
    assert_eq!((file.node(), file.highest()), (NODE, Some(at(2, 5))));
    assert!(!file.is_earlier(boot(1)), "it may be alive");
}

#[test]
fn a_database_that_went_back_in_any_way_is_behind_and_one_that_went_on_is_not() {
    let other = Mark { db_id: [8; 16], epoch: 9, generation: 9 };
    for found in [Some(at(2, 4)), Some(at(1, 5)), Some(at(1, 9)), Some(at(3, 4)), Some(other), None] {
        let dir = tempfile::tempdir().unwrap();
        let mut file = seen(dir.path());
        file.judge(found).unwrap();
        assert_eq!(file.behind(), Some(Behind { found, seen: at(2, 5) }), "{found:?}");
    }
    for found in [at(2, 5), at(2, 6), at(3, 6)] {
        let dir = tempfile::tempdir().unwrap();
        let mut file = seen(dir.path());
        file.judge(Some(found)).unwrap();
        assert_eq!(file.behind(), None, "{found:?}");
    }
}

#[test]
fn opening_writes_nothing_before_the_process_is_entered() {
    let dir = tempfile::tempdir().unwrap();
    let (file, _) = NodeFile::open(dir.path(), NODE, boot(1)).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    file.enter().unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_node_that_has_seen_no_database_takes_any() {
    let dir = tempfile::tempdir().unwrap();
    let (mut file, _) = open(dir.path(), 1);
    file.judge(None).unwrap();
    file.judge(Some(at(9, 9))).unwrap();
    assert_eq!(file.behind(), None);
}

#[test]
fn what_was_found_behind_stays_so_over_restarts_until_both_numbers_are_above_what_was_seen() {
    let dir = tempfile::tempdir().unwrap();
    seen(dir.path()).judge(Some(at(2, 4))).unwrap();
    // Shreds that are replayed raise the generation alone; another node's rotation could raise the epoch.
    for found in [at(2, 4), at(2, 5), at(2, 9), at(3, 5), at(1, 9)] {
        let (mut file, _) = open(dir.path(), 2);
        file.judge(Some(found)).unwrap();
        assert!(file.behind().is_some(), "{found:?}");
        assert!(!file.is_accepted_at(found), "{found:?}");
    }
    let (mut file, _) = open(dir.path(), 2);
    file.judge(Some(at(3, 6))).unwrap();
    assert!(file.behind().is_some(), "what this node remembers comes first");
    assert!(file.is_accepted_at(at(3, 6)), "another node accepted it");
    file.went_on().unwrap();
    assert!(!file.is_accepted_at(at(3, 6)), "that is done");
    assert_eq!(open(dir.path(), 3).0.behind(), None);
}

#[test]
fn the_right_database_is_good_again_after_another_was_found_but_not_after_it_went_back_itself() {
    let other = Mark { db_id: [8; 16], epoch: 1, generation: 1 };
    for wrong in [Some(other), None] {
        let dir = tempfile::tempdir().unwrap();
        let mut file = seen(dir.path());
        file.judge(wrong).unwrap();
        let (mut file, _) = open(dir.path(), 2);
        assert!(file.behind().is_some());
        file.judge(Some(at(2, 5))).unwrap();
        assert_eq!(file.behind(), None);
        for found in [wrong, Some(at(2, 4)), wrong, Some(at(2, 5))] {
            file.judge(found).unwrap();
            assert!(file.behind().is_some(), "{found:?}");
        }
    }
}

#[test]
fn a_shred_that_was_done_is_remembered_also_where_a_restored_database_knows_nothing_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = seen(dir.path());
    file.note(at(2, 6), Micros(2), &[blocked("alice", 10, Some(11)), blocked("bob", 10, None)], &BTreeSet::new())
        .unwrap();
    file.note(at(3, 9), Micros(3), &[], &BTreeSet::new()).unwrap();
    for file in [file, open(dir.path(), 2).0] {
        let done = Fate::Shredded { shred_at: Micros(10), shredded_at: Micros(11) };
        assert_eq!(file.fates(DB), BTreeMap::from([(tenant("alice"), done), (tenant("bob"), Fate::Cancelled)]));
    }
}

#[test]
fn what_somebody_wrote_into_the_systems_own_row_spoils_no_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = seen(dir.path());
    let system = TenantRecord { tenant: Tenant::system(), ..blocked("alice", 10, None) };
    file.note(at(2, 6), Micros(2), &[system, blocked("alice", 10, None)], &BTreeSet::new()).unwrap();
    let (file, notices) = open(dir.path(), 2);
    assert_eq!(notices, []);
    assert_eq!(file.fates(DB), BTreeMap::from([(tenant("alice"), Fate::Pending { shred_at: Micros(10) })]));
}

#[test]
fn an_accepted_database_counts_from_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = seen(dir.path());
    let other = Mark { db_id: [8; 16], epoch: 1, generation: 1 };
    file.judge(Some(other)).unwrap();
    file.accept(other, Micros(2), &[], &BTreeSet::new()).unwrap();
    for mut file in [file, open(dir.path(), 2).0] {
        assert_eq!((file.behind(), file.highest()), (None, Some(other)));
        file.judge(Some(other)).unwrap();
        assert_eq!(file.behind(), None);
        assert!(file.is_complete());
    }
}

#[test]
fn the_log_says_what_changed_and_gives_it_all_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = seen(dir.path());
    let (a, b) = (blocked("alice", 10, None), blocked("bob", 20, None));
    file.note(at(2, 6), Micros(2), &[a.clone(), b.clone()], &BTreeSet::new()).unwrap();
    // Seven to nine were slept through: bob was spared, alice is gone, and carol waits.
    let gone = blocked("alice", 10, Some(11));
    file.note(at(2, 10), Micros(3), &[gone, blocked("carol", 30, None)], &BTreeSet::new()).unwrap();
    let expected = BTreeMap::from([
        (tenant("alice"), Fate::Shredded { shred_at: Micros(10), shredded_at: Micros(11) }),
        (tenant("bob"), Fate::Cancelled),
        (tenant("carol"), Fate::Pending { shred_at: Micros(30) }),
    ]);
    assert_eq!(file.fates(DB), expected);
    let (file, notices) = open(dir.path(), 2);
    assert_eq!(notices, []);
    assert_eq!(file.fates(DB), expected);
    assert_eq!(file.fates([8; 16]), BTreeMap::new(), "another database's tenants are others");
    assert_eq!(file.noted_at(), Some(Micros(3)));
    let text = fs::read_to_string(dir.path().join(LOG)).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(!text.lines().last().unwrap().contains("\"shred_at\":20"), "a difference, not the whole: {text}");
}

#[test]
fn revoked_tokens_are_remembered_for_good_and_each_is_written_once() {
    let dir = tempfile::tempdir().unwrap();
    let id = |letter: &str| TokenId::parse(&letter.repeat(22)).unwrap();
    let mut file = seen(dir.path());
    file.note(at(2, 6), Micros(2), &[], &[id("a")].into()).unwrap();
    file.note(at(2, 7), Micros(3), &[], &[id("a"), id("b")].into()).unwrap();
    let log = fs::read_to_string(dir.path().join(LOG)).unwrap();
    assert_eq!(log.matches(&"a".repeat(22)).count(), 1, "{log}");
    assert!(log.lines().last().unwrap().ends_with(&format!(r#""revoked":["{}"]}}"#, "b".repeat(22))), "{log}");
    // A database that went back holds neither; what is remembered does not forget.
    file.note(at(3, 8), Micros(4), &[], &BTreeSet::new()).unwrap();
    let (file, _) = NodeFile::open(dir.path(), NodeId::new([1; 16]), BootId::new([2; 16])).unwrap();
    assert_eq!(file.revoked(DB), [id("a"), id("b")].into());
    assert!(file.revoked([8; 16]).is_empty());
}

#[test]
fn a_line_that_a_crash_cut_off_is_removed_and_the_next_one_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    seen(dir.path());
    let path = dir.path().join(LOG);
    let whole = fs::read(&path).unwrap();
    let mut torn = whole.clone();
    torn.extend_from_slice(&whole[..whole.len() / 2]);
    fs::write(&path, &torn).unwrap();
    let (mut file, notices) = open(dir.path(), 2);
    assert_eq!(notices, [Notice::TornLine]);
    assert_eq!(fs::read(&path).unwrap(), whole);
    assert!(file.is_complete());
    file.note(at(2, 6), Micros(2), &[blocked("alice", 1, None)], &BTreeSet::new()).unwrap();
    let (file, notices) = open(dir.path(), 3);
    assert_eq!((notices, file.fates(DB).len()), (Vec::new(), 1));
}

#[test]
fn a_log_that_ran_ahead_of_the_record_by_a_crash_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = seen(dir.path());
    let record = fs::read(dir.path().join(RECORD)).unwrap();
    file.note(at(2, 6), Micros(2), &[blocked("alice", 1, None)], &BTreeSet::new()).unwrap();
    fs::write(dir.path().join(RECORD), record).unwrap();
    let (mut file, _) = open(dir.path(), 2);
    assert_eq!((file.highest(), file.is_complete(), file.fates(DB).len()), (Some(at(2, 5)), true, 1));
    assert!(file.lacks(at(2, 6)));
    file.note(at(2, 6), Micros(3), &[blocked("alice", 1, None)], &BTreeSet::new()).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join(LOG)).unwrap().lines().count(), 2, "the line was there already");
}

#[test]
fn lines_that_cannot_be_read_make_the_log_incomplete_until_it_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    seen(dir.path()).note(at(2, 6), Micros(2), &[blocked("alice", 1, None)], &BTreeSet::new()).unwrap();
    let path = dir.path().join(LOG);
    let text = fs::read_to_string(&path).unwrap();
    for damage in ["{}", "not JSON", "\u{0}\u{0}"] {
        fs::write(&path, format!("{damage}\n{}\n", text.lines().next().unwrap())).unwrap();
        let (mut file, notices) = open(dir.path(), 2);
        assert!(notices.contains(&Notice::BadLines { count: 1 }), "{notices:?}");
        assert!(!file.is_complete() && file.lacks(at(2, 6)));
        file.note(at(2, 6), Micros(3), &[blocked("alice", 1, None)], &BTreeSet::new()).unwrap();
        assert!(file.is_complete());
        let (file, notices) = open(dir.path(), 3);
        assert_eq!((notices, file.is_complete(), file.fates(DB).len()), (Vec::new(), true, 1));
        assert!(fs::read_to_string(dir.path().join("critical.jsonl.damaged")).unwrap().contains(damage));
    }
}

#[test]
fn a_record_that_is_gone_is_made_anew_and_remembers_by_the_log() {
    let dir = tempfile::tempdir().unwrap();
    seen(dir.path());
    fs::remove_file(dir.path().join(RECORD)).unwrap();
    let (file, notices) = open(dir.path(), 2);
    assert_eq!(notices, [Notice::RecordLost]);
    assert_eq!((file.node(), file.highest()), (NodeId::new([2; 16]), Some(at(2, 5))));
}

#[test]
fn a_log_that_is_gone_is_incomplete_until_the_next_note() {
    let dir = tempfile::tempdir().unwrap();
    seen(dir.path());
    fs::remove_file(dir.path().join(LOG)).unwrap();
    let (mut file, notices) = open(dir.path(), 2);
    assert_eq!(notices, [Notice::LogLost]);
    assert!(!file.is_complete() && file.lacks(at(2, 5)));
    file.note(at(2, 5), Micros(2), &[blocked("alice", 1, None)], &BTreeSet::new()).unwrap();
    assert!(file.is_complete());
    assert_eq!(file.fates(DB).len(), 1);
}

#[test]
fn a_record_that_cannot_be_trusted_is_refused_and_stays() {
    for damage in ["", "{", "null", "{\"node_id\":\"x\",\"inode\":1,\"boot_ids\":[]}"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(RECORD);
        fs::write(&path, damage).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        let refused = NodeFile::open(dir.path(), NODE, boot(1)).unwrap_err();
        assert!(matches!(refused, NodeFileError::Damaged { .. }), "{damage}: {refused}");
        assert_eq!(fs::read_to_string(&path).unwrap(), damage);
    }
    for name in [RECORD, LOG] {
        let dir = tempfile::tempdir().unwrap();
        seen(dir.path());
        let path = dir.path().join(name);
        fs::set_permissions(&path, PermissionsExt::from_mode(0o620)).unwrap();
        let refused = NodeFile::open(dir.path(), NODE, boot(2)).unwrap_err();
        assert!(matches!(refused, NodeFileError::Writable { mode: 0o620, .. }), "{refused}");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        open(dir.path(), 2);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600, "tightened");
        fs::rename(&path, dir.path().join("moved")).unwrap();
        std::os::unix::fs::symlink("moved", &path).unwrap();
        let refused = NodeFile::open(dir.path(), NODE, boot(3)).unwrap_err();
        assert!(matches!(refused, NodeFileError::NotAFile { .. }), "{refused}");
    }
}

#[test]
fn a_large_log_is_folded_into_a_line_for_each_database_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = seen(dir.path());
    file.accept(
        Mark { db_id: [8; 16], epoch: 1, generation: 1 },
        Micros(1),
        &[blocked("dora", 5, None)],
        &BTreeSet::new(),
    )
    .unwrap();
    file.accept(at(2, 6), Micros(2), &[blocked("alice", 1, None), blocked("bob", 2, Some(3))], &BTreeSet::new())
        .unwrap();
    file.note(at(2, 7), Micros(3), &[blocked("bob", 2, Some(3))], &BTreeSet::new()).unwrap();
    let before = (file.fates(DB), file.fates([8; 16]));
    drop(file);
    let path = dir.path().join(LOG);
    let text = fs::read_to_string(&path).unwrap();
    let last = text.lines().last().unwrap();
    fs::write(&path, format!("{text}{}", format!("{last}\n").repeat(1024 * 1024 / last.len()))).unwrap();
    for number in 2..4 {
        let (file, notices) = open(dir.path(), number);
        assert_eq!((file.fates(DB), file.fates([8; 16])), before);
        assert_eq!((notices, file.is_complete(), file.highest()), (Vec::new(), true, Some(at(2, 7))));
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
    }
}
