//! The planner over a model of the database, with crashes, a second rotator and creators of DEKs at any point.

mod model;

use proptest::prelude::*;

use super::super::Escrow;
use super::*;
use crate::model::Tenant;
use model::{Cloud, Event, World};

fn kid(number: u8) -> Kid {
    Kid::new([number; 16])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    /// The invariants of the exhaustive model, in whatever order things happen: see `World::check`. And whatever happened, one node that
    /// goes on alone ends it.
    #[test]
    fn whatever_happens_no_dek_is_lost_and_the_rotation_can_be_ended(events in proptest::collection::vec(model::event(), 0..120)) {
        let mut world = World::new();
        for event in &events {
            world.happen(event);
            world.check()?;
        }
        world.drain()?;
        world.check()?;
        prop_assert_eq!(world.state.phase, KeyPhase::Idle);
        prop_assert_eq!(world.state.lease, None);
        let active = world.state.active_kid;
        prop_assert!(world.deks.iter().all(|dek| dek.kid == active), "{:?}", world.deks);
    }
}

#[test]
fn a_rotation_without_trouble_goes_through_its_steps_in_order_and_ends_retired_and_idle() {
    let mut world = World::new();
    let escrow = Escrow::Waive;
    world.happen(&Event::Ask(0, Asked::Start { mode: KeyMode::Compromised, escrow }));
    let mut steps = Vec::new();
    while let Some(step) = world.plan(0) {
        steps.push(format!("{step:?}").split(['(', ' ']).next().unwrap().to_owned());
        world.happen(&Event::Install(1));
        world.happen(&Event::Act(0));
        world.check().unwrap();
        steps.dedup();
        assert!(steps.len() < 30, "{steps:?}");
    }
    let expected = [
        "TakeLease",
        "Preflight",
        "Stage",
        "Waive",
        "Flip",
        "Rewrap",
        "Verify",
        "Promote",
        "Retire",
        "Reencrypt",
        "Finish",
    ];
    assert_eq!(steps, expected);
    assert_eq!(world.ended(0), Some(Next::Stop(Stop::Rotated)));
    assert_eq!(world.key_state(kid(1)), MasterKeyState::Retired);
}

#[test]
fn a_waiting_node_is_waited_for_and_a_lost_one_must_be_named() {
    let mut world = World::new();
    world.happen(&Event::Ask(0, Asked::Start { mode: KeyMode::Normal, escrow: Escrow::Waive }));
    world.run(0);
    assert!(matches!(world.ended(0), Some(Next::WaitForNodes { nodes, .. }) if nodes.len() == 1));
    world.happen(&Event::Crash(1));
    world.happen(&Event::TimePasses);
    world.run(0);
    let Some(Next::Blocked(blocked)) = world.ended(0) else { panic!("{:?}", world.ended(0)) };
    assert!(blocked.to_string().contains(&format!("--without-node {}", World::node_id(1))), "{blocked}");
    world.name_as_away(0, 1);
    world.run(0);
    assert_eq!(world.ended(0), Some(Next::Stop(Stop::Rotated)));
}

#[test]
fn a_node_that_is_named_as_away_but_is_live_is_waited_for() {
    let mut world = World::new();
    world.happen(&Event::Ask(0, Asked::Start { mode: KeyMode::Normal, escrow: Escrow::Waive }));
    world.name_as_away(0, 1);
    world.run(0);
    assert!(matches!(world.ended(0), Some(Next::WaitForNodes { .. })), "{:?}", world.ended(0));
}

#[test]
fn a_node_that_was_named_and_is_forgotten_stops_nothing_that_is_under_way() {
    let unknown = 9;
    for phase in [KeyPhase::Idle, KeyPhase::Staged, KeyPhase::Rewrapping] {
        let mut world = World::new();
        world.happen(&Event::Ask(0, Asked::Start { mode: KeyMode::Normal, escrow: Escrow::Waive }));
        while world.state.phase != phase {
            world.plan(0).unwrap();
            world.happen(&Event::Install(1));
            world.happen(&Event::Act(0));
        }
        world.happen(&Event::Install(1));
        world.name_as_away(0, unknown);
        if phase == KeyPhase::Rewrapping {
            world.ask(0, Asked::Resume { proof: None, escrow: Escrow::Prove });
        }
        world.run(0);
        let expected = match phase {
            KeyPhase::Idle => Next::Blocked(Blocked::UnknownNode(World::node_id(unknown))),
            _ => Next::Stop(Stop::Rotated),
        };
        assert_eq!(world.ended(0), Some(expected), "{phase}");
    }
}

#[test]
fn staging_stops_for_the_proof_of_a_copy_and_only_that_keys_copy_is_taken() {
    let mut world = World::new();
    world.happen(&Event::Ask(0, Asked::Start { mode: KeyMode::Normal, escrow: Escrow::Prove }));
    world.run(0);
    let staged = world.staged().unwrap();
    assert_eq!(world.ended(0), Some(Next::Stop(Stop::NeedsCopy(staged))));
    let proof = |kid| Some(Proof { kid, locator: "/media/key".to_owned(), sha256: [0; 32] });
    world.ask(0, Asked::Resume { proof: proof(kid(1)), escrow: Escrow::Prove });
    world.run(0);
    let wrong = Blocked::WrongCopy { found: kid(1), wanted: staged };
    assert_eq!(world.ended(0), Some(Next::Blocked(wrong)));
    world.happen(&Event::Install(1));
    world.ask(0, Asked::Resume { proof: proof(staged), escrow: Escrow::Prove });
    world.run(0);
    assert_eq!(world.ended(0), Some(Next::Stop(Stop::Rotated)));
}

#[test]
fn a_new_key_is_copied_to_the_cloud_before_the_flip_and_without_that_copy_there_is_none() {
    let mut world = World::new();
    world.happen(&Event::Cloud(Cloud::Away));
    world.happen(&Event::Ask(0, Asked::Start { mode: KeyMode::Normal, escrow: Escrow::Push }));
    world.run(0);
    let staged = world.staged().unwrap();
    let Some(Next::Blocked(blocked)) = world.ended(0) else { panic!("{:?}", world.ended(0)) };
    for part in ["no answer within 10 s", "--resume`", "--escrow prove`", "--abort`"] {
        assert!(blocked.to_string().contains(part), "{blocked}");
    }
    world.happen(&Event::Cloud(Cloud::Up));
    world.ask(0, Asked::Resume { proof: None, escrow: Escrow::Push });
    assert_eq!(
        world.plan(0),
        Some(Step::TakeLease).filter(|_| world.state.lease.is_none()).or(Some(Step::Push(staged)))
    );
    world.run(0);
    assert!(matches!(world.ended(0), Some(Next::WaitForNodes { .. })), "{:?}", world.ended(0));
    world.happen(&Event::Install(1));
    world.run(0);
    assert_eq!(world.ended(0), Some(Next::Stop(Stop::Rotated)));
}

#[test]
fn what_the_cloud_refused_can_be_given_up_and_a_copy_that_was_only_begun_is_none() {
    let mut world = World::new();
    world.happen(&Event::Ask(0, Asked::Start { mode: KeyMode::Normal, escrow: Escrow::Push }));
    while !matches!(world.plan(0), Some(Step::Push(_))) {
        world.happen(&Event::Act(0));
    }
    world.happen(&Event::CrashInside(0));
    world.happen(&Event::Restart(0));
    world.ask(0, Asked::Resume { proof: None, escrow: Escrow::Prove });
    world.run(0);
    assert_eq!(world.ended(0), Some(Next::Stop(Stop::NeedsCopy(world.staged().unwrap()))));
    world.happen(&Event::Cloud(Cloud::Away));
    world.ask(0, Asked::Resume { proof: None, escrow: Escrow::Push });
    world.run(0);
    assert!(matches!(world.ended(0), Some(Next::Blocked(Blocked::NotPushed { .. }))), "{:?}", world.ended(0));
    world.ask(0, Asked::Abort);
    world.run(0);
    assert!(matches!(world.ended(0), Some(Next::Stop(Stop::Aborted(Some(_))))), "{:?}", world.ended(0));
}

#[test]
fn what_is_staged_can_be_given_up_and_after_the_flip_nothing_can() {
    let mut world = World::new();
    world.happen(&Event::Ask(0, Asked::Start { mode: KeyMode::Normal, escrow: Escrow::Prove }));
    world.run(0);
    let staged = world.staged().unwrap();
    world.ask(0, Asked::Start { mode: KeyMode::Normal, escrow: Escrow::Prove });
    world.run(0);
    assert_eq!(world.ended(0), Some(Next::Blocked(Blocked::StagedAlready(staged))));
    world.ask(0, Asked::Abort);
    world.run(0);
    assert_eq!(world.ended(0), Some(Next::Stop(Stop::Aborted(Some(staged)))));
    assert_eq!(world.key_state(staged), MasterKeyState::Aborted);
    world.ask(0, Asked::Abort);
    world.run(0);
    assert_eq!(world.ended(0), Some(Next::Blocked(Blocked::NothingStaged)));
    world.state.phase = KeyPhase::Rewrapping;
    world.run(0);
    assert_eq!(world.ended(0), Some(Next::Blocked(Blocked::PastTheFlip(KeyPhase::Rewrapping))));
}

#[test]
fn a_key_that_was_staged_before_this_nodes_record_began_is_kept_when_it_is_given_up() {
    for (remembers_since, state) in [
        (Some(Micros(0)), MasterKeyState::Aborted),
        (Some(Micros(1)), MasterKeyState::Retired),
        (None, MasterKeyState::Retired),
    ] {
        let mut world = World::new();
        world.happen(&Event::Ask(0, Asked::Start { mode: KeyMode::Normal, escrow: Escrow::Prove }));
        world.run(0);
        let staged = world.staged().unwrap();
        world.remembers_since = remembers_since;
        world.ask(0, Asked::Abort);
        world.run(0);
        assert_eq!(world.ended(0), Some(Next::Stop(Stop::Aborted(Some(staged)))));
        assert_eq!(world.key_state(staged), state, "{remembers_since:?}");
    }
}

#[test]
fn a_start_that_is_given_up_before_it_staged_a_key_says_so() {
    let mut world = World::new();
    world.happen(&Event::Ask(0, Asked::Start { mode: KeyMode::Normal, escrow: Escrow::Waive }));
    for _ in 0..2 {
        world.happen(&Event::Look(0));
        world.happen(&Event::Act(0));
    }
    world.turn(0, Asked::Abort);
    world.run(0);
    assert_eq!(world.ended(0), Some(Next::Stop(Stop::Aborted(None))));
    assert_eq!(world.staged(), None);
}

#[test]
fn a_dek_that_does_not_open_stops_it_by_name_with_both_ways_on() {
    let mut world = World::new();
    world.happen(&Event::Ask(0, Asked::Start { mode: KeyMode::Normal, escrow: Escrow::Waive }));
    let tenant = Tenant::parse("alice").unwrap();
    let why = "corrupted".to_owned();
    world.damage(0, Damaged { tenant, version: crate::model::DekVersion::new(3), why });
    world.run(0);
    let Some(Next::Blocked(blocked)) = world.ended(0) else { panic!("{:?}", world.ended(0)) };
    let text = blocked.to_string();
    for part in ["DEK alice 3 does not open: corrupted", "Restore that row", "admin quarantine alice 3`", "--resume`"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn an_old_key_is_destroyed_after_its_time_with_a_copy_or_a_waiver_and_no_quarantined_dek() {
    let mut world = World::new();
    world.happen(&Event::Ask(0, Asked::Start { mode: KeyMode::Normal, escrow: Escrow::Waive }));
    world.happen(&Event::Install(1));
    for _ in 0..30 {
        world.happen(&Event::Look(0));
        world.happen(&Event::Act(0));
        world.happen(&Event::Install(1));
    }
    assert_eq!(world.ended(0), Some(Next::Stop(Stop::Rotated)));
    let destroy = |escrow| Asked::DestroyOld { kid: kid(1), proof: None, escrow };
    let blocked = |world: &mut World, asked| {
        world.ask(0, asked);
        world.run(0);
        match world.ended(0) {
            Some(Next::Blocked(blocked)) => blocked,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(blocked(&mut world, destroy(Escrow::Waive)), Blocked::TooEarly { .. }));
    world.now.0 += i64::try_from(model::RETAIN.as_micros()).unwrap();
    world.escrows.clear();
    for escrow in [Escrow::Prove, Escrow::Push] {
        assert_eq!(blocked(&mut world, destroy(escrow)), Blocked::NotReadBack(kid(1)));
    }
    world.quarantined = 2;
    assert_eq!(blocked(&mut world, destroy(Escrow::Waive)), Blocked::Quarantined { kid: kid(1), deks: 2 });
    world.quarantined = 0;
    let active = world.state.active_kid;
    let not_retired = Asked::DestroyOld { kid: active, proof: None, escrow: Escrow::Waive };
    let wanted = Blocked::NotRetired { kid: active, state: MasterKeyState::Active };
    assert_eq!(blocked(&mut world, not_retired), wanted);
    world.ask(0, destroy(Escrow::Waive));
    world.run(0);
    assert_eq!(world.ended(0), Some(Next::Stop(Stop::Destroyed(kid(1)))));
}

#[test]
fn another_nodes_lease_is_respected_until_it_lapses_and_an_earlier_start_of_this_node_has_none() {
    let mut world = World::new();
    world.happen(&Event::Ask(0, Asked::Start { mode: KeyMode::Normal, escrow: Escrow::Waive }));
    world.happen(&Event::Look(0));
    world.happen(&Event::Act(0));
    world.ask(1, Asked::Start { mode: KeyMode::Normal, escrow: Escrow::Waive });
    world.run(1);
    assert!(matches!(world.ended(1), Some(Next::Blocked(Blocked::Busy { .. }))), "{:?}", world.ended(1));
    world.happen(&Event::Crash(0));
    world.happen(&Event::Restart(0));
    world.ask(0, Asked::Start { mode: KeyMode::Normal, escrow: Escrow::Waive });
    assert_eq!(world.plan(0), Some(Step::TakeLease), "its own earlier start is dead");
    world.happen(&Event::TimePasses);
    world.run(1);
    assert!(!matches!(world.ended(1), Some(Next::Blocked(Blocked::Busy { .. }))));
}

#[test]
fn every_reason_to_stop_names_what_mends_it() {
    let node = World::new().nodes()[1].clone();
    let some = [
        Blocked::Busy { node: node.node, until: Micros(0) },
        Blocked::StagedAlready(kid(1)),
        Blocked::UnderWay(KeyPhase::Rewrapping),
        Blocked::GivenUp,
        Blocked::PastTheFlip(KeyPhase::Verified),
        Blocked::NothingStaged,
        Blocked::NotLoaded(kid(1)),
        Blocked::NoStagedFile(kid(1)),
        Blocked::WrongCopy { found: kid(1), wanted: kid(2) },
        Blocked::NotPushed {
            kid: kid(1),
            trouble: Trouble { class: crate::service::backup::Class::Denied, why: "denied".to_owned() },
        },
        Blocked::UnknownNode(node.node),
        Blocked::LostNodes { nodes: vec![node] },
        Blocked::Damage { deks: Vec::new(), more: 3 },
        Blocked::NoProgress(1),
        Blocked::Promotion("the disk is full".to_owned()),
        Blocked::Verification("it ended with 101".to_owned()),
        Blocked::UnknownKey(kid(1)),
        Blocked::NotRetired { kid: kid(1), state: MasterKeyState::Active },
        Blocked::TooEarly { kid: kid(1), at: Micros(0) },
        Blocked::NotReadBack(kid(1)),
        Blocked::Quarantined { kid: kid(1), deks: 1 },
    ];
    for blocked in some {
        let text = blocked.to_string();
        assert!(text.contains("`containarium admin "), "{text}");
    }
    assert!(Blocked::Corrupt("x".to_owned()).to_string().contains("Restore"));
}
