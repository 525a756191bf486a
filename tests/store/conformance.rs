//! One suite for every store: each test is written once, over a fixture, and runs on each store under its name.

mod backups;
mod batches;
mod coalescing;
mod corrupt;
mod dek_versions;
mod deks;
mod destroying;
mod escrows;
mod first_key;
mod guards;
mod listing;
mod nodes;
mod races;
mod reading;
mod rotating;
mod shredding;
mod tokens;
mod trail;
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
                a_dek_comes_back_into_use_under_the_active_key_only,
                a_shredded_dek_stays_shredded,
            }
            nodes {
                a_node_is_as_it_last_said,
                a_node_lives_for_thirty_seconds_after_it_was_seen,
                a_copied_data_directory_is_told_of_the_live_boot,
                a_restarted_node_takes_its_row_over_at_once,
                of_two_boots_of_one_new_node_one_is_told,
                only_a_node_that_is_gone_is_forgotten,
                a_node_that_breaks_the_rule_is_named,
                a_lease_keeps_other_nodes_out_until_it_lapses,
                another_boot_of_the_node_takes_its_lease_at_once,
                only_its_holder_gives_a_lease_back,
                of_many_that_want_the_lease_one_gets_it,
                without_a_first_key_there_is_no_rotation,
            }
            rotating {
                a_key_is_staged_once,
                a_kid_that_was_ever_seen_is_never_staged_again,
                staging_is_fenced,
                a_staged_key_is_given_up_whole,
                after_the_flip_there_is_no_way_back,
                a_flip_makes_the_new_key_the_active_one,
                a_flip_is_fenced,
                a_zombie_rotator_finds_the_lease_taken,
                a_lapsed_lease_holds_as_long_as_nobody_took_it,
                a_flip_needs_its_staged_key,
                a_flip_needs_a_confirmed_copy_or_a_waiver,
                a_waiver_stands_for_a_copy_at_the_flip,
                a_flip_waits_for_every_node,
                a_node_that_is_gone_with_the_new_key_is_not_waited_for,
                deks_under_a_key_come_in_pages_in_the_order_of_the_index,
                a_rewrap_replaces_what_is_still_as_it_was_read,
                a_rewrap_is_fenced,
                a_rewrap_of_wrong_length_changes_nothing_of_its_batch,
                secrets_are_read_and_written_at_every_step,
                the_phase_changes_only_where_no_step_does_it,
                a_rotation_for_a_compromised_key_ends_after_reencrypting,
                a_key_is_retired_when_no_dek_in_use_is_under_it,
                retiring_is_fenced,
                a_quarantined_dek_does_not_keep_a_key_from_retiring,
                two_rotations_follow_each_other,
                the_generation_rises_by_one,
                an_accepted_restore_lowers_nothing,
                an_accepted_restore_retires_a_key_that_was_staged,
            }
            escrows {
                an_escrow_comes_back_as_it_was_added,
                what_is_no_escrow_is_refused,
                an_escrow_advances_and_keeps_what_was_stamped,
                a_confirmed_escrow_is_not_overwritten_by_a_second_answer,
                what_became_of_a_copy_is_remembered_until_it_is_read_back,
                a_lost_copy_stands_for_nothing,
                only_a_retired_key_is_destroyed,
                a_retired_key_is_destroyed_when_its_time_has_come_and_its_copy_was_read_back,
                a_waiver_stands_for_a_copy_that_was_read_back,
                a_key_with_quarantined_deks_is_not_destroyed,
            }
            coalescing {
                of_many_reads_at_once_each_gets_its_own_answer,
                a_damaged_row_fails_those_who_read_it_and_nobody_else,
                a_reader_that_goes_away_takes_nobody_along,
                reads_of_a_closed_store_are_told_so_and_nobody_hangs,
            }
            backups {
                the_newest_copy_of_the_database_is_the_last_one,
                the_newest_drill_is_the_last_one,
                a_backup_or_drill_that_breaks_the_rule_is_named,
            }
            dek_versions {
                deks_are_found_by_tenant_and_version,
                deks_of_an_earlier_epoch_are_known_by_it_and_not_by_a_clock,
                a_new_dek_version_seals_and_the_old_one_opens,
                only_the_active_dek_is_replaced,
                a_dek_made_after_the_flip_is_under_the_new_key,
                versions_under_a_dek_come_in_pages,
                resealing_moves_versions_and_changes_nothing_else,
                a_version_that_changed_or_went_is_left_alone,
                a_refused_reseal_replaces_nothing,
                a_dek_goes_when_nothing_is_sealed_under_it,
                a_dek_is_set_aside_where_it_is_as_it_was_read,
                a_dek_that_is_released_is_active_only_where_nothing_took_its_place,
                a_dek_is_released_under_the_active_key_only,
            }
            shredding {
                a_scheduled_shred_blocks_at_once_and_destroys_nothing,
                a_cancelled_shred_gives_everything_back,
                a_shred_leaves_no_wrapping_and_no_way_back,
                a_shred_is_due_when_its_moment_has_come,
                the_longest_due_shred_comes_first,
                blocked_tenants_come_in_pages_by_name,
                the_systems_tenant_is_never_shredded,
                a_rotation_passes_over_what_is_shredded,
            }
            trail {
                every_change_tells_what_it_touched_and_has_its_record,
                a_call_that_changes_nothing_has_no_record,
                a_change_that_cannot_be_recorded_is_not_made,
                a_record_gets_its_place_once_and_the_head_goes_with_it,
                records_are_put_behind_the_head_that_there_is_and_behind_no_other,
            }
            tokens {
                a_token_comes_back_as_it_was_made_with_the_state_that_it_was_read_in,
                tokens_come_in_pages_by_id,
                a_revocation_raises_the_generation_in_its_own_transaction,
                tokens_are_revoked_by_tenant_by_maker_and_all_of_them,
                a_row_that_somebody_else_wrote_is_named_and_gets_no_mac,
                a_use_is_stamped_at_most_once_a_minute,
                a_new_key_of_token_rows_is_in_use_for_all_of_them_with_its_own_commit,
            }
            races {
                no_dek_that_is_made_during_a_rotation_lands_under_the_retired_key,
                of_many_flips_one_is_made,
                of_many_that_replace_a_dek_one_does,
                writes_go_on_while_deks_are_replaced,
                a_reencryption_beside_writes_loses_nothing,
                nothing_is_written_after_a_shred,
            }
        }
    };
}

conformance!(postgres);
conformance!(sqlite);
