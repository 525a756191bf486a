use super::super::{Verdict, verdict};
use super::*;

const SECOND: i64 = 1_000_000;

fn on_disk(room: Result<Room, String>, limits: RoomLimits) -> Check {
    disk("data-disk", Path::new("/data"), room, limits)
}

#[test]
fn a_clock_that_is_off_warns_at_five_seconds_and_fails_at_a_minute_either_way() {
    for (apart, expected) in
        [(0, Verdict::Ok), (4, Verdict::Ok), (5, Verdict::Warning), (59, Verdict::Warning), (60, Verdict::Failure)]
    {
        for database in [1000 + apart, 1000 - apart] {
            let check = clock(Micros(1000 * SECOND), Micros(database * SECOND));
            assert_eq!(check.verdict, expected, "{}", check.finding);
            assert_eq!(check.mend.is_some(), expected != Verdict::Ok);
        }
    }
}

#[test]
fn issuers_warn_from_half_of_the_time_that_keys_are_kept_and_fail_without_any() {
    let hours = |hours| Duration::from_hours(hours);
    let of = |usable, age, failure: Option<&str>| KeysState {
        issuer: crate::model::IssuerName::parse("one").unwrap(),
        usable,
        age,
        keep: hours(24),
        failure: failure.map(str::to_owned),
    };
    let good = || of(2, Some(hours(1)), None);
    for (state, expected, says) in [
        (of(2, Some(hours(12)), None), Verdict::Ok, "one has 2 keys, seen 43200 s ago"),
        (of(2, Some(hours(13)), None), Verdict::Warning, "lapse in 39600 s"),
        (of(2, Some(hours(1)), Some("it is away")), Verdict::Warning, "lapse in 82800 s: it is away"),
        (of(0, Some(hours(25)), Some("it is away")), Verdict::Failure, "have lapsed"),
        (of(0, None, Some("it is gone")), Verdict::Failure, "let nobody in: it is gone"),
    ] {
        let check = issuers(&[good(), state, good()]).unwrap();
        assert_eq!(check.verdict, expected, "{}", check.finding);
        assert!(check.finding.contains(says), "{says}: {}", check.finding);
        assert_eq!(check.mend.is_some(), expected != Verdict::Ok);
    }
    assert_eq!(issuers(&[]), None);
}

#[test]
fn a_disk_warns_and_fails_at_its_limits() {
    for limits in [DATA_ROOM, KEY_ROOM] {
        for (bytes, expected) in [
            (limits.failure - 1, Verdict::Failure),
            (limits.failure, Verdict::Warning),
            (limits.warning - 1, Verdict::Warning),
            (limits.warning, Verdict::Ok),
        ] {
            let check = on_disk(Ok(Room { bytes, files: None }), limits);
            assert_eq!(check.verdict, expected, "{}", check.finding);
        }
    }
    let full = on_disk(Ok(Room { bytes: u64::MAX, files: Some(0) }), DATA_ROOM);
    assert_eq!((full.verdict, full.mend.as_deref()), (Verdict::Failure, Some("df -i /data")));
    assert_eq!(on_disk(Ok(Room { bytes: u64::MAX, files: Some(1) }), DATA_ROOM).verdict, Verdict::Ok);
    assert_eq!(on_disk(Err("gone".to_owned()), DATA_ROOM).verdict, Verdict::Failure);
    assert!(Room::of(Path::new("/nowhere/at/all")).is_err());
}

#[test]
fn what_the_process_lacks_is_a_warning_with_its_mend() {
    assert_eq!(memory(&[]).verdict, Verdict::Ok);
    let check = memory(&["memory is not locked: set LimitMEMLOCK=infinity".to_owned()]);
    assert_eq!(check.verdict, Verdict::Warning);
    assert!(check.finding.contains("LimitMEMLOCK=infinity"), "{}", check.finding);
}

#[test]
fn a_daemon_that_waits_for_something_is_a_failure_that_says_for_what() {
    assert_eq!(daemon(&[]).verdict, Verdict::Ok);
    let check = daemon(&["keys: no key".to_owned()]);
    assert_eq!(check.verdict, Verdict::Failure);
    assert!(check.finding.contains("keys: no key"), "{}", check.finding);
}

#[test]
fn problems_of_the_nodes_files_are_a_warning() {
    assert_eq!(node(&["its record cannot be written".to_owned()], None, None).verdict, Verdict::Warning);
    assert_eq!(node(&[], None, None).verdict, Verdict::Ok);
}

#[test]
fn the_worst_check_counts() {
    let (ok, warning, failure) = (Check::ok("a", ""), Check::warning("b", ""), Check::failure("c", ""));
    assert_eq!(verdict(&[]), Verdict::Ok);
    assert_eq!(verdict(&[ok.clone(), warning.clone()]), Verdict::Warning);
    assert_eq!(verdict(&[warning, failure, ok]), Verdict::Failure);
}
