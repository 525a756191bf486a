use proptest::prelude::*;

use super::*;
use crate::model::{KeyMode, KeyPhase, MasterKeyState, Micros};

const PATH: &str = "/etc/containarium/secrets.key";

fn kid(number: u8) -> Kid {
    Kid::new([number; 16])
}

fn state(active: Kid) -> KeyState {
    KeyState {
        db_id: [7; 16],
        epoch: 1,
        generation: 1,
        active_kid: active,
        mode: KeyMode::Normal,
        phase: KeyPhase::Idle,
        lease: None,
    }
}

fn record(kid: Kid, state: MasterKeyState, in_use: bool) -> MasterKeyRecord {
    MasterKeyRecord { kid, state, created_at: Micros(0), retired_at: None, in_use }
}

fn retained(kid: Kid) -> FoundKey {
    FoundKey { kid, path: format!("{PATH}.d/{kid}").into() }
}

fn files(main: Main, kept: &[Kid]) -> Files {
    Files {
        path: PATH.into(),
        main,
        retained: kept.iter().map(|kid| retained(*kid)).collect(),
        problems: Vec::new(),
        owner: 0,
        copies: Copies::Unknown,
    }
}

const EMPTY: Database<'static> = Database { key_state: None, master_keys: &[], holds_rows: false, v1_table: false };

fn why(decision: &Decision) -> Why {
    match decision {
        Decision::Refuse(reason) | Decision::Locked(reason) => reason.why,
        other => panic!("{other:?}"),
    }
}

/// A database whose active key is 1; 2 still wraps DEKs in `mid_rotation`.
fn populated(mid_rotation: bool, files: &Files) -> Decision {
    let state = state(kid(1));
    let master_keys = [
        record(kid(1), MasterKeyState::Active, true),
        record(kid(2), MasterKeyState::DecryptOnly, mid_rotation),
        record(kid(3), MasterKeyState::Retired, false),
    ];
    let database = Database { key_state: Some(&state), master_keys: &master_keys, holds_rows: true, v1_table: false };
    decide(&database, files, Adopt::NotAsked)
}

#[test]
fn a_new_database_and_no_key_file_make_the_first_key() {
    for adopt in [Adopt::NotAsked, Adopt::Asked] {
        assert_eq!(decide(&EMPTY, &files(Main::Missing, &[]), adopt), Decision::CreateKey);
    }
}

#[test]
fn a_key_file_beside_a_new_database_is_taken_only_when_asked() {
    let files = files(Main::Key(kid(1)), &[]);
    let refused = decide(&EMPTY, &files, Adopt::NotAsked);
    let Decision::Refuse(reason) = &refused else { panic!("{refused:?}") };
    let text = reason.to_string();
    assert!(text.contains("--adopt-key") && text.contains(&format!("mv -nT {PATH} {PATH}.moved`")), "{text}");
    assert_eq!(decide(&EMPTY, &files, Adopt::Asked), Decision::AdoptKey(kid(1)));
}

#[test]
fn a_key_beside_version_1_is_never_taken() {
    let database = Database { v1_table: true, ..EMPTY };
    for adopt in [Adopt::NotAsked, Adopt::Asked] {
        assert_eq!(why(&decide(&database, &files(Main::Key(kid(1)), &[]), adopt)), Why::KeyBesideV1);
    }
    assert_eq!(why(&decide(&database, &files(Main::Missing, &[kid(1)]), Adopt::Asked)), Why::KeyBesideV1);
}

#[test]
fn a_bad_key_file_beside_a_new_database_is_never_replaced() {
    let files = files(Main::Bad("it is empty".to_owned()), &[]);
    for adopt in [Adopt::NotAsked, Adopt::Asked] {
        let decision = decide(&EMPTY, &files, adopt);
        let Decision::Refuse(reason) = &decision else { panic!("{decision:?}") };
        assert_eq!(reason.why, Why::BadFileBesideEmpty);
        assert!(reason.to_string().contains("it is empty"));
    }
}

#[test]
fn a_first_start_that_was_killed_after_staging_is_simply_begun_again() {
    let kept = files(Main::Missing, &[kid(4)]);
    assert_eq!(decide(&EMPTY, &kept, Adopt::NotAsked), Decision::CreateKey);
    assert_eq!(why(&decide(&EMPTY, &kept, Adopt::Asked)), Why::AdoptNeedsMain);
    let mut broken = files(Main::Missing, &[]);
    broken.problems.push("a key with mode 0440".to_owned());
    assert_eq!(why(&decide(&EMPTY, &broken, Adopt::NotAsked)), Why::StrangeKey);
}

#[test]
fn rows_without_a_key_state_are_a_damaged_database() {
    let rows = Database { holds_rows: true, ..EMPTY };
    assert_eq!(why(&decide(&rows, &files(Main::Missing, &[]), Adopt::Asked)), Why::NoKeyState);
    let known = [record(kid(1), MasterKeyState::Active, true)];
    let keys = Database { master_keys: &known, ..EMPTY };
    assert_eq!(why(&decide(&keys, &files(Main::Key(kid(1)), &[]), Adopt::Asked)), Why::NoKeyState);
}

#[test]
fn the_active_key_alone_opens_when_nothing_else_is_in_use() {
    let decision = populated(false, &files(Main::Key(kid(1)), &[]));
    assert_eq!(decision, Decision::Open { needed: vec![kid(1)], active: kid(1), promote: None });
}

#[test]
fn in_a_rotation_both_keys_are_needed_and_the_active_one_is_promoted() {
    let decision = populated(true, &files(Main::Key(kid(2)), &[kid(1)]));
    assert_eq!(decision, Decision::Open { needed: vec![kid(1), kid(2)], active: kid(1), promote: Some(kid(1)) });
    let decision = populated(false, &files(Main::Missing, &[kid(1)]));
    assert_eq!(decision, Decision::Open { needed: vec![kid(1)], active: kid(1), promote: Some(kid(1)) });
}

#[test]
fn a_bad_key_file_stops_no_start_that_has_the_key_and_is_not_written_over() {
    let decision = populated(false, &files(Main::Bad("cut short".to_owned()), &[kid(1)]));
    assert_eq!(decision, Decision::Open { needed: vec![kid(1)], active: kid(1), promote: None });
}

#[test]
fn an_old_key_without_the_active_one_waits_instead_of_exiting() {
    for main in [kid(2), kid(3)] {
        let decision = populated(false, &files(Main::Key(main), &[]));
        assert!(matches!(decision, Decision::Locked(_)), "{decision:?}");
        assert_eq!(why(&decision), Why::NotActive);
        let Decision::Locked(reason) = decision else { panic!("{decision:?}") };
        let text = reason.to_string();
        assert!(text.contains(". Then the daemon opens by itself. Or put it back by hand:"), "{text}");
        assert!(!text.contains("start again"), "{text}");
    }
}

#[test]
fn the_active_key_without_another_that_is_needed_refuses() {
    let decision = populated(true, &files(Main::Key(kid(1)), &[]));
    assert!(matches!(decision, Decision::Refuse(_)), "{decision:?}");
    assert_eq!(why(&decision), Why::Incomplete);
}

#[test]
fn where_copies_are_in_secret_manager_the_command_that_fetches_them_comes_first() {
    let copies = Copies::InSecretManager;
    for files in [files(Main::Missing, &[]), files(Main::Key(kid(3)), &[]), files(Main::Key(kid(1)), &[])] {
        for (copies, named) in [(copies, true), (Copies::Unknown, false)] {
            let decision = populated(true, &Files { copies, ..files.clone() });
            let (Decision::Refuse(reason) | Decision::Locked(reason)) = decision else { panic!("{decision:?}") };
            let text = reason.to_string();
            assert_eq!(text.contains("`containarium backup restore`"), named, "{text}");
            assert!(text.contains("containarium admin install-key"), "{text}");
        }
    }
}

#[test]
fn a_lost_or_wrong_key_is_answered_with_what_to_type() {
    let missing = populated(true, &files(Main::Missing, &[]));
    let Decision::Refuse(reason) = &missing else { panic!("{missing:?}") };
    let (one, two) = (kid(1), kid(2));
    assert_eq!(
        reason.to_string(),
        format!(
            "the database is encrypted, and none of its master keys is here. Nothing was changed\
             \n  needed: {one} (active), not found\
             \n  needed: {two}, not found\
             \n  found:  nothing at {PATH}\
             \nBring each key that was not found back from its copy: `containarium backup restore --from COPY`, with this daemon's settings \
             and as its user (COPY is a key file, a sheet of paper typed in, or an age file, which also needs `--identity FILE`); or from \
             another node's key file: `containarium admin install-key < KEYFILE`. Then start again. Or put it back by hand:\
             \n  install -d -m 0700 -o root {PATH}.d\
             \n  install -m 0400 -o root BACKUP {PATH}.d/{one}\
             \n  install -m 0400 -o root BACKUP {PATH}.d/{two}\
             \nIf you expected another database, correct --database-url or --data-dir (`containarium config show` shows both)."
        )
    );
    let wrong = populated(false, &files(Main::Key(kid(9)), &[]));
    assert_eq!(why(&wrong), Why::NoKnownKey);
}

fn any_kid() -> impl Strategy<Value = Kid> {
    (1u8..6).prop_map(kid)
}

fn any_main() -> impl Strategy<Value = Main> {
    prop_oneof![Just(Main::Missing), any_kid().prop_map(Main::Key), Just(Main::Bad("a bad file".to_owned()))]
}

fn any_files() -> impl Strategy<Value = Files> {
    let problems = prop::collection::vec(Just("a problem".to_owned()), 0..2);
    (any_main(), prop::collection::vec(any_kid(), 0..4), problems)
        .prop_map(|(main, kept, problems)| Files { problems, ..files(main, &kept) })
}

fn any_records() -> impl Strategy<Value = Vec<MasterKeyRecord>> {
    let record = (any_kid(), prop::sample::select(MasterKeyState::ALL), any::<bool>());
    prop::collection::vec(record.prop_map(|(kid, state, in_use)| self::record(kid, state, in_use)), 0..5)
}

fn any_adopt() -> impl Strategy<Value = Adopt> {
    prop_oneof![Just(Adopt::Asked), Just(Adopt::NotAsked)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_start_makes_a_key_that_may_be_missing_nor_opens_without_one_nor_refuses_without_naming_all(
        active in prop::option::of(any_kid()),
        master_keys in any_records(),
        holds_rows: bool,
        v1_table: bool,
        files in any_files(),
        adopt in any_adopt(),
    ) {
        let key_state = active.map(state);
        let database = Database { key_state: key_state.as_ref(), master_keys: &master_keys, holds_rows, v1_table };
        let mut found: Vec<Kid> = files.retained.iter().map(|key| key.kid).collect();
        if let Main::Key(kid) = files.main {
            found.push(kid);
        }
        let mut wanted: Vec<Kid> = master_keys.iter().filter(|record| record.in_use).map(|record| record.kid).collect();
        wanted.extend(active);
        let never_held = active.is_none() && master_keys.is_empty() && !holds_rows;
        match decide(&database, &files, adopt) {
            Decision::CreateKey => {
                prop_assert!(never_held);
                prop_assert!(files.main == Main::Missing && files.problems.is_empty());
                prop_assert!(found.is_empty() || adopt == Adopt::NotAsked);
            }
            Decision::AdoptKey(kid) => {
                prop_assert!(never_held && adopt == Adopt::Asked && !v1_table);
                prop_assert_eq!(&files.main, &Main::Key(kid));
            }
            Decision::Open { needed, active: opened, promote } => {
                prop_assert_eq!(Some(opened), active);
                prop_assert!(wanted.iter().all(|kid| needed.contains(kid)));
                prop_assert!(needed.iter().all(|kid| found.contains(kid)));
                let main_is_another = match files.main {
                    Main::Key(kid) => kid != opened,
                    Main::Missing => true,
                    Main::Bad(_) => false,
                };
                prop_assert_eq!(promote, main_is_another.then_some(opened));
            }
            Decision::Locked(reason) => {
                prop_assert!(active.is_some_and(|active| !found.contains(&active)));
                prop_assert!(master_keys.iter().any(|record| found.contains(&record.kid)));
                prop_assert!(names_all(&reason, &wanted, &files), "{}", reason);
            }
            Decision::Refuse(reason) => prop_assert!(names_all(&reason, &wanted, &files), "{}", reason),
        }
    }
}

fn names_all(reason: &Reason, wanted: &[Kid], files: &Files) -> bool {
    let text = reason.to_string();
    let says = |line: String| text.lines().any(|shown| shown.trim().starts_with(&line));
    let main = match &files.main {
        Main::Key(kid) => says(format!("found:  {kid} in {PATH}")),
        Main::Missing => says(format!("found:  nothing at {PATH}")),
        Main::Bad(error) => says(format!("cannot be used: {error}")),
    };
    main && wanted.iter().all(|kid| says(format!("needed: {kid}")))
        && files.retained.iter().all(|key| says(format!("found:  {} in {PATH}.d/{}", key.kid, key.kid)))
        && files.problems.iter().all(|problem| says(format!("look at: {problem}")))
}
