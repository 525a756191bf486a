//! One suite for every store: each test is written once, over a fixture, and runs on each store under its name.

mod batches;
mod corrupt;
mod deks;
mod destroying;
mod first_key;
mod guards;
mod listing;
mod reading;
mod writing;

/// Makes a module of tests for the store that `support::stores` names so.
macro_rules! on_store {
    ($store:ident: $($room:ident { $($test:ident),+ $(,)? })+) => {
        mod $store {
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$room::$test(crate::support::stores::$store().await).await;
                }
            )+)+
        }
    };
}

/// The suite. A test that is not named here is dead code, which the compiler says.
macro_rules! conformance {
    ($store:ident) => {
        on_store! { $store:
            first_key {
                the_first_key_is_made_once,
                of_many_first_starts_one_makes_the_key,
                a_first_key_that_fails_changes_nothing,
                the_first_key_brings_the_system_tenant,
                rows_without_a_key_state_never_get_a_new_key,
                a_populated_database_that_lost_its_key_state_never_gets_a_new_key,
                a_key_state_alone_is_a_key_that_was_held,
                an_empty_database_holds_nothing,
                a_master_key_in_use_says_so,
                only_a_confirmed_copy_is_an_escrow,
            }
            deks {
                a_tenant_comes_with_its_dek,
                concurrent_first_writes_of_a_tenant_make_one_dek,
                a_blocked_tenant_gets_no_dek,
                a_dek_is_never_made_over_orphans,
                destroyed_versions_are_no_orphans,
                a_new_dek_follows_the_highest_number,
                a_dek_that_is_refused_leaves_no_tenant,
                without_a_first_key_there_is_no_dek,
            }
            writing {
                a_write_creates_then_updates_then_leaves_alone,
                a_sealer_is_given_its_place_and_what_lies_there,
                values_of_no_bytes_and_of_the_most_bytes_come_back,
                concurrent_writers_leave_no_gap_and_reuse_no_number,
                a_set_after_delete_continues_the_numbering,
                a_number_is_never_used_twice_even_after_destroy,
                an_expected_absence_holds_for_what_cannot_be_read,
                an_expected_version_must_be_current_and_readable,
                a_copy_makes_a_new_version_of_an_old_value,
                a_copy_of_what_is_not_there_is_refused,
                a_copy_is_checked_before_the_expectation,
                older_versions_are_pruned_to_the_newest,
                an_unchanged_write_prunes_nothing,
                keeping_none_keeps_the_current_version,
                delivery_is_kept_unless_given,
                a_write_without_a_dek_is_refused_and_leaves_nothing,
                a_refused_expectation_asks_for_no_dek,
                a_sealer_that_refuses_leaves_no_trace,
                a_sealer_that_breaks_its_word_stores_nothing,
                a_blocked_tenant_is_refused_everywhere,
                the_last_number_is_the_last,
                a_new_dek_seals_and_the_old_one_still_opens,
            }
            batches {
                each_intent_of_a_batch_has_its_own_outcome,
                a_refusal_undoes_an_all_or_nothing_batch,
                an_all_or_nothing_batch_without_refusal_is_made,
                the_first_refusal_of_an_all_or_nothing_batch_is_the_one_named,
                a_batch_spans_tenants,
                batches_that_cross_each_other_both_come_through,
                an_empty_batch_does_nothing,
                a_write_that_is_dropped_leaves_the_store_usable,
            }
            reading {
                each_place_is_answered_in_its_order,
                the_same_place_twice_is_answered_twice,
                a_deleted_secret_is_found_with_its_deletion,
                a_version_that_never_was_or_was_pruned_is_absent,
                a_destroyed_version_is_found_as_such,
                a_missing_dek_row_is_absence_not_an_error,
                dek_states_come_through,
                no_places_are_no_answers,
            }
            listing {
                a_tenant_is_read_whole,
                a_tenant_is_read_up_to_the_limit,
                lists_come_in_pages_by_name,
                what_cannot_be_read_is_not_listed,
                versions_are_listed_newest_first_without_their_bytes,
                tenants_come_in_pages_without_the_systems_own,
                listings_of_the_unknown_are_refused,
                counts_add_up,
                a_store_answers_a_ping,
            }
            destroying {
                a_deleted_secret_comes_back_whole,
                deleting_and_undeleting_are_refused_out_of_turn,
                destroying_is_all_or_nothing,
                what_is_destroyed_stays_as_it_is,
                versions_of_a_deleted_secret_can_be_destroyed,
                destroying_nothing_changes_nothing,
            }
            corrupt {
                a_dek_in_no_known_state_is_named,
                a_secret_with_no_known_delivery_is_named,
                a_secret_whose_current_version_is_zero_is_named,
                a_secret_whose_current_version_is_missing_is_named,
                a_live_version_without_bytes_is_named,
                a_tenant_that_breaks_the_rule_is_named,
                a_secret_that_breaks_the_rule_is_named,
                a_kid_of_fifteen_bytes_is_named,
                a_key_state_in_no_known_phase_is_named,
                damage_to_one_secret_leaves_the_others_readable,
            }
            guards {
                a_dek_is_wrapped_by_the_active_key_only,
                the_identity_of_a_dek_is_fixed,
                a_master_key_in_use_cannot_be_retired,
                the_counter_only_rises,
                a_destroyed_version_cannot_come_back,
                a_shredded_dek_has_no_bytes,
                a_tenant_has_one_active_dek,
                a_database_has_one_active_master_key,
                a_live_version_has_its_bytes_and_its_dek,
                there_is_one_key_state,
            }
        }
    };
}

conformance!(postgres);
conformance!(sqlite);
