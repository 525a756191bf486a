# Every bad value is refused, and says why: what the message must have stands above each run, and scripts/check-terraform holds it to
# that, since expect_failures tells only which variable was refused and not by which of its rules.

mock_provider "google" {}

variables {
  project_id = "acme-secrets"
  daemons    = { a = "serviceAccount:daemon-a@acme-hosts.iam.gserviceaccount.com" }
}

# says: project_id must be a project's id
run "refuses_a_project_by_number" {
  command = plan

  variables {
    project_id = "123456789012"
  }

  expect_failures = [var.project_id]
}

# says: name must be 2 to 20
run "refuses_a_name_too_long_for_an_account" {
  command = plan

  variables {
    name = "containarium-production"
  }

  expect_failures = [var.name]
}

# says: secret_id must be 1 to 255
run "refuses_a_secret_with_its_project" {
  command = plan

  variables {
    secret_id = "projects/acme-secrets/secrets/s"
  }

  expect_failures = [var.secret_id]
}

# says: daemons must name at least one identity
run "refuses_no_daemon" {
  command = plan

  variables {
    daemons = {}
  }

  expect_failures = [var.daemons]
}

# says: daemons must be "serviceAccount:EMAIL" or "principal://
run "refuses_everyone_as_a_daemon" {
  command = plan

  variables {
    daemons = { a = "allUsers" }
  }

  expect_failures = [var.daemons]
}

# says: daemons must be "serviceAccount:EMAIL" or "principal://
run "refuses_a_group_as_a_daemon" {
  command = plan

  variables {
    daemons = { a = "group:hosts@example.com" }
  }

  expect_failures = [var.daemons]
}

# says: daemons must not name a project's default service account
run "refuses_the_default_account_as_a_daemon" {
  command = plan

  variables {
    daemons = { a = "serviceAccount:123-compute@developer.gserviceaccount.com" }
  }

  expect_failures = [var.daemons]
}

# says: daemons must not name a project's default service account
run "refuses_the_app_engine_account_as_a_daemon" {
  command = plan

  variables {
    daemons = { a = "serviceAccount:acme-secrets@appspot.gserviceaccount.com" }
  }

  expect_failures = [var.daemons]
}

# says: daemons must not be among drill.members
run "refuses_a_daemon_that_may_drill" {
  command = plan

  variables {
    offsite = { project_id = "acme-offsite" }
    drill   = { members = { a = "serviceAccount:daemon-a@acme-hosts.iam.gserviceaccount.com" } }
  }

  expect_failures = [var.daemons]
}

# says: daemons must not be among kms.operators or kms.encrypters
run "refuses_a_daemon_that_operates_the_key" {
  command = plan

  variables {
    kms = { location = "global", project_id = "acme-kms", operators = { a = "serviceAccount:daemon-a@acme-hosts.iam.gserviceaccount.com" } }
  }

  expect_failures = [var.daemons]
}

# says: daemons must not be among kms.operators or kms.encrypters
run "refuses_a_daemon_that_wraps" {
  command = plan

  variables {
    kms = { location = "global", project_id = "acme-kms", encrypters = { a = "serviceAccount:daemon-a@acme-hosts.iam.gserviceaccount.com" } }
  }

  expect_failures = [var.daemons]
}

# says: daemons must not name the restore or the drill account
run "refuses_the_restore_account_as_a_daemon" {
  command = plan

  variables {
    daemons = { a = "serviceAccount:containarium-restore@acme-secrets.iam.gserviceaccount.com" }
  }

  expect_failures = [var.daemons]
}

# says: replication.cmek is for automatic replication
run "refuses_one_key_beside_replicas" {
  command = plan

  variables {
    replication = { cmek = { key = "projects/acme-cmek/locations/global/keyRings/r/cryptoKeys/k" }, replicas = { europe-west1 = {} } }
  }

  expect_failures = [var.replication]
}

# says: replication.cmek.key must be projects/PROJECT_ID/locations/global
run "refuses_a_regional_key_for_automatic_replication" {
  command = plan

  variables {
    replication = { cmek = { key = "projects/acme-cmek/locations/europe-west1/keyRings/r/cryptoKeys/k" } }
  }

  expect_failures = [var.replication]
}

# says: replication.cmek.key must be projects/PROJECT_ID/locations/global
run "refuses_a_key_version_for_automatic_replication" {
  command = plan

  variables {
    replication = { cmek = { key = "projects/acme-cmek/locations/global/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1" } }
  }

  expect_failures = [var.replication]
}

# says: replication.cmek.key must be projects/PROJECT_ID/locations/global
run "refuses_a_key_of_a_project_by_number" {
  command = plan

  variables {
    replication = { cmek = { key = "projects/123456789012/locations/global/keyRings/r/cryptoKeys/k" } }
  }

  expect_failures = [var.replication]
}

# says: replication.replicas: a cmek.key must be projects
run "refuses_a_replicas_key_elsewhere" {
  command = plan

  variables {
    replication = { replicas = { europe-west1 = { cmek = { key = "projects/acme-cmek/locations/global/keyRings/r/cryptoKeys/k" } } } }
  }

  expect_failures = [var.replication]
}

# says: replication.replicas: give every replica a cmek, or none
run "refuses_a_key_for_one_replica_only" {
  command = plan

  variables {
    replication = { replicas = { europe-west1 = { cmek = { key = "projects/acme-cmek/locations/europe-west1/keyRings/r/cryptoKeys/k" } }, europe-west4 = {} } }
  }

  expect_failures = [var.replication]
}

# says: replication: a cmek.key must not be the key that wraps the master key
run "refuses_the_wrap_key_for_the_copy" {
  command = plan

  variables {
    kms         = { location = "global", project_id = "acme-kms" }
    replication = { cmek = { key = "projects/acme-kms/locations/global/keyRings/containarium/cryptoKeys/master" } }
  }

  expect_failures = [var.replication]
}

# says: replication: a cmek.key must not be the key that wraps the master key
run "refuses_the_wrap_key_for_a_replica" {
  command = plan

  variables {
    kms         = { location = "europe-west1", project_id = "acme-kms" }
    replication = { replicas = { europe-west1 = { cmek = { key = "projects/acme-kms/locations/europe-west1/keyRings/containarium/cryptoKeys/master" } } } }
  }

  expect_failures = [var.replication]
}

# says: offsite.project_id must be a project's id
run "refuses_an_offsite_project_by_number" {
  command = plan

  variables {
    offsite = { project_id = "123456789012" }
  }

  expect_failures = [var.offsite]
}

# says: offsite.project_id must be another project than project_id
run "refuses_an_offsite_copy_at_home" {
  command = plan

  variables {
    offsite = { project_id = "acme-secrets" }
  }

  expect_failures = [var.offsite]
}

# says: offsite.secret_id must be 1 to 255
run "refuses_an_offsite_secret_with_its_project" {
  command = plan

  variables {
    offsite = { project_id = "acme-offsite", secret_id = "projects/p/secrets/s" }
  }

  expect_failures = [var.offsite]
}

# says: offsite.replication.cmek is for automatic replication
run "refuses_one_offsite_key_beside_replicas" {
  command = plan

  variables {
    offsite = { project_id = "acme-offsite", replication = { cmek = { key = "projects/acme-cmek/locations/global/keyRings/r/cryptoKeys/k" }, replicas = { europe-west1 = {} } } }
  }

  expect_failures = [var.offsite]
}

# says: offsite.replication.cmek.key must be projects/PROJECT_ID/locations/global
run "refuses_a_regional_key_for_automatic_offsite_replication" {
  command = plan

  variables {
    offsite = { project_id = "acme-offsite", replication = { cmek = { key = "projects/acme-cmek/locations/europe-west1/keyRings/r/cryptoKeys/k" } } }
  }

  expect_failures = [var.offsite]
}

# says: offsite.replication.replicas: a cmek.key must be projects
run "refuses_an_offsite_replicas_key_elsewhere" {
  command = plan

  variables {
    offsite = { project_id = "acme-offsite", replication = { replicas = { europe-west1 = { cmek = { key = "projects/acme-cmek/locations/global/keyRings/r/cryptoKeys/k" } } } } }
  }

  expect_failures = [var.offsite]
}

# says: offsite.replication.replicas: give every replica a cmek, or none
run "refuses_a_key_for_one_offsite_replica_only" {
  command = plan

  variables {
    offsite = { project_id = "acme-offsite", replication = { replicas = { europe-west1 = { cmek = { key = "projects/acme-cmek/locations/europe-west1/keyRings/r/cryptoKeys/k" } }, europe-west4 = {} } } }
  }

  expect_failures = [var.offsite]
}

# says: offsite.replication: a cmek.key must lie in a project that has neither
run "refuses_the_wrap_key_for_the_offsite_copy" {
  command = plan

  variables {
    kms     = { location = "global", project_id = "acme-kms" }
    offsite = { project_id = "acme-offsite", replication = { cmek = { key = "projects/acme-kms/locations/global/keyRings/containarium/cryptoKeys/master" } } }
  }

  expect_failures = [var.offsite]
}

# says: offsite.replication: a cmek.key must lie in a project that has neither
run "refuses_one_project_for_the_keys_of_both_copies" {
  command = plan

  variables {
    replication = { cmek = { key = "projects/acme-cmek/locations/global/keyRings/r/cryptoKeys/one" } }
    offsite     = { project_id = "acme-offsite", replication = { cmek = { key = "projects/acme-cmek/locations/global/keyRings/r/cryptoKeys/two" } } }
  }

  expect_failures = [var.offsite]
}

# says: offsite.replication: a cmek.key must lie in a project that has neither
run "refuses_an_offsite_copys_key_beside_the_primary_copy" {
  command = plan

  variables {
    offsite = { project_id = "acme-offsite", replication = { cmek = { key = "projects/acme-secrets/locations/global/keyRings/r/cryptoKeys/k" } } }
  }

  expect_failures = [var.offsite]
}

# says: offsite.replication: a cmek.key must lie in a project that has neither
run "refuses_an_offsite_replicas_key_beside_the_primary_replicas_key" {
  command = plan

  variables {
    replication = { replicas = { europe-west1 = { cmek = { key = "projects/acme-cmek/locations/europe-west1/keyRings/r/cryptoKeys/k" } } } }
    offsite     = { project_id = "acme-offsite", replication = { replicas = { europe-west4 = { cmek = { key = "projects/acme-cmek/locations/europe-west4/keyRings/r/cryptoKeys/k" } } } } }
  }

  expect_failures = [var.offsite]
}

# says: offsite.replication.replicas must be named by a region
run "refuses_an_offsite_replica_in_a_zone" {
  command = plan

  variables {
    offsite = { project_id = "acme-offsite", replication = { replicas = { europe-west1-b = {} } } }
  }

  expect_failures = [var.offsite]
}

# says: replication.replicas must be named by a region
run "refuses_a_replica_in_a_multi_region" {
  command = plan

  variables {
    replication = { replicas = { eu = {} } }
  }

  expect_failures = [var.replication]
}

# says: kms.location must be a location of Cloud KMS
run "refuses_a_place_that_is_no_location" {
  command = plan

  variables {
    kms = { location = "locations/global" }
  }

  expect_failures = [var.kms]
}

# says: kms.project_id must be a project's id
run "refuses_a_kms_project_by_number" {
  command = plan

  variables {
    kms = { location = "global", project_id = "123456789012" }
  }

  expect_failures = [var.kms]
}

# says: kms.key_ring and kms.key must be 1 to 63
run "refuses_a_key_with_its_ring" {
  command = plan

  variables {
    kms = { location = "global", project_id = "acme-kms", key = "ring/key" }
  }

  expect_failures = [var.kms]
}

# says: kms.key_ring and kms.key must be 1 to 63
run "refuses_a_ring_with_its_project" {
  command = plan

  variables {
    kms = { location = "global", project_id = "acme-kms", key_ring = "p/ring" }
  }

  expect_failures = [var.kms]
}

# says: kms.protection_level must be HSM or SOFTWARE
run "refuses_an_unknown_protection_level" {
  command = plan

  variables {
    kms = { location = "global", project_id = "acme-kms", protection_level = "EXTERNAL" }
  }

  expect_failures = [var.kms]
}

# says: kms.operators and kms.encrypters must be
run "refuses_everyone_as_an_operator" {
  command = plan

  variables {
    kms = { location = "global", project_id = "acme-kms", operators = { a = "allAuthenticatedUsers" } }
  }

  expect_failures = [var.kms]
}

# says: kms.operators and kms.encrypters must be
run "refuses_everyone_as_an_encrypter" {
  command = plan

  variables {
    kms = { location = "global", project_id = "acme-kms", encrypters = { a = "allUsers" } }
  }

  expect_failures = [var.kms]
}

# says: restore_members must be "group:EMAIL" or "user:EMAIL"
run "refuses_a_machine_that_restores" {
  command = plan

  variables {
    restore_members = ["serviceAccount:daemon-a@acme-hosts.iam.gserviceaccount.com"]
  }

  expect_failures = [var.restore_members]
}

# says: restore_members must be "group:EMAIL" or "user:EMAIL"
run "refuses_everyone_who_restores" {
  command = plan

  variables {
    restore_members = ["allAuthenticatedUsers"]
  }

  expect_failures = [var.restore_members]
}

# says: restore_until must be a time such as
run "refuses_a_time_in_words" {
  command = plan

  variables {
    restore_members = ["group:b@example.com"]
    restore_until   = "tomorrow"
  }

  expect_failures = [var.restore_until]
}

# says: restore_until must be a time such as
run "refuses_a_day_that_is_none" {
  command = plan

  variables {
    restore_members = ["group:b@example.com"]
    restore_until   = "2026-02-30T00:00:00Z"
  }

  expect_failures = [var.restore_until]
}

# says: restore_until must be at most 7 days ahead
run "refuses_a_window_of_years" {
  command = plan

  variables {
    restore_members = ["group:b@example.com"]
    restore_until   = "2099-01-01T00:00:00Z"
  }

  expect_failures = [var.restore_until]
}

# says: restore_until must be at most 7 days ahead
run "refuses_a_window_of_eight_days" {
  command = plan

  variables {
    restore_members = ["group:b@example.com"]
    restore_until   = timeadd(timestamp(), "192h")
  }

  expect_failures = [var.restore_until]
}

# says: restore_until needs restore_members
run "refuses_a_window_for_nobody" {
  command = plan

  variables {
    restore_until = "2026-01-31T18:00:00Z"
  }

  expect_failures = [var.restore_until]
}

# says: drill needs offsite
run "refuses_a_drill_on_the_primary_copy" {
  command = plan

  variables {
    drill = { members = { b = "group:b@example.com" } }
  }

  expect_failures = [var.drill]
}

# says: drill.members must be one or more of
run "refuses_a_drill_by_nobody" {
  command = plan

  variables {
    offsite = { project_id = "acme-offsite" }
    drill   = { members = {} }
  }

  expect_failures = [var.drill]
}

# says: drill.members must be one or more of
run "refuses_a_drill_by_everyone" {
  command = plan

  variables {
    offsite = { project_id = "acme-offsite" }
    drill   = { members = { a = "allUsers" } }
  }

  expect_failures = [var.drill]
}

# says: alerts.emails must be addresses
run "refuses_an_address_that_is_none" {
  command = plan

  variables {
    alerts = { emails = ["security"] }
  }

  expect_failures = [var.alerts]
}

# says: alerts.channels must be projects/PROJECT_ID/notificationChannels/ID
run "refuses_a_channel_of_another_project" {
  command = plan

  variables {
    alerts = { emails = ["security@example.com"], channels = ["projects/acme-other/notificationChannels/1"] }
  }

  expect_failures = [var.alerts]
}

# says: alerts.channels must be projects/PROJECT_ID/notificationChannels/ID
run "refuses_a_channel_without_its_project" {
  command = plan

  variables {
    alerts = { emails = ["security@example.com"], channels = ["acme-secrets/1"] }
  }

  expect_failures = [var.alerts]
}

# says: alerts must reach somebody in every project
run "refuses_alerts_that_reach_nobody" {
  command = plan

  variables {
    alerts = {}
  }

  expect_failures = [var.alerts]
}

# says: alerts must reach somebody in every project
run "refuses_alerts_that_reach_nobody_offsite" {
  command = plan

  variables {
    offsite = { project_id = "acme-offsite" }
    alerts  = { channels = ["projects/acme-secrets/notificationChannels/1"] }
  }

  expect_failures = [var.alerts]
}

# says: labels must have keys of 1 to 63
run "refuses_a_label_with_capitals" {
  command = plan

  variables {
    labels = { Team = "x" }
  }

  expect_failures = [var.labels]
}

# says: labels must have keys of 1 to 63
run "refuses_a_label_value_with_a_dot" {
  command = plan

  variables {
    labels = { team = "a.b" }
  }

  expect_failures = [var.labels]
}

# says: labels must not have app or deployment
run "refuses_a_label_that_the_module_sets" {
  command = plan

  variables {
    labels = { app = "other" }
  }

  expect_failures = [var.labels]
}

# says: daemons must be "serviceAccount:EMAIL" or "principal://
run "refuses_a_person_of_googles_as_a_daemon" {
  command = plan

  variables {
    daemons = { a = "principal://goog/subject/eve@example.com" }
  }

  expect_failures = [var.daemons]
}

# says: daemons must not name a project's default service account
run "refuses_the_account_of_googles_own_services_as_a_daemon" {
  command = plan

  variables {
    daemons = { a = "serviceAccount:123456789012@cloudservices.gserviceaccount.com" }
  }

  expect_failures = [var.daemons]
}

# says: daemons must not be among kms.operators or kms.encrypters
run "refuses_a_daemon_that_operates_the_key_in_other_letters" {
  command = plan

  variables {
    kms = { location = "global", project_id = "acme-kms", operators = { a = "serviceAccount:Daemon-A@acme-hosts.iam.gserviceaccount.com" } }
  }

  expect_failures = [var.daemons]
}

# says: daemons must not be among drill.members
run "refuses_a_daemon_that_may_drill_in_other_letters" {
  command = plan

  variables {
    offsite = { project_id = "acme-offsite" }
    drill   = { members = { a = "serviceAccount:DAEMON-A@acme-hosts.iam.gserviceaccount.com" } }
  }

  expect_failures = [var.daemons]
}

# says: daemons must not name the restore or the drill account
run "refuses_the_drill_account_as_a_daemon_in_other_letters" {
  command = plan

  variables {
    daemons = { a = "serviceAccount:Containarium-Drill@acme-offsite.iam.gserviceaccount.com" }
  }

  expect_failures = [var.daemons]
}

# says: kms.operators and kms.encrypters must be
run "refuses_an_account_that_is_called_a_user_as_an_operator" {
  command = plan

  variables {
    kms = { location = "global", project_id = "acme-kms", operators = { a = "user:daemon-a@acme-hosts.iam.gserviceaccount.com" } }
  }

  expect_failures = [var.kms]
}

# says: kms.operators and kms.encrypters must be
run "refuses_the_public_as_an_operator" {
  command = plan

  variables {
    kms = { location = "global", project_id = "acme-kms", operators = { a = "principalSet://goog/public:all" } }
  }

  expect_failures = [var.kms]
}

# says: kms.operators and kms.encrypters must be
run "refuses_a_whole_pool_as_an_operator" {
  command = plan

  variables {
    kms = { location = "global", project_id = "acme-kms", operators = { a = "principalSet://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/*" } }
  }

  expect_failures = [var.kms]
}

# says: restore_members must be "group:EMAIL" or "user:EMAIL"
run "refuses_an_account_that_is_called_a_user_who_restores" {
  command = plan

  variables {
    restore_members = ["user:daemon-a@acme-hosts.iam.gserviceaccount.com"]
  }

  expect_failures = [var.restore_members]
}

# says: drill.members must be one or more of
run "refuses_an_account_that_is_called_a_group_in_a_drill" {
  command = plan

  variables {
    offsite = { project_id = "acme-offsite" }
    drill   = { members = { a = "group:daemon-a@acme-hosts.iam.gserviceaccount.com" } }
  }

  expect_failures = [var.drill]
}

# says: offsite.project_id must not be the project of a cmek.key
run "refuses_the_primary_copys_key_beside_the_offsite_copy" {
  command = plan

  variables {
    offsite     = { project_id = "acme-offsite" }
    replication = { cmek = { key = "projects/acme-offsite/locations/global/keyRings/r/cryptoKeys/k" } }
  }

  expect_failures = [var.offsite]
}

# says: daemons must be "serviceAccount:EMAIL"
run "refuses_a_line_that_ends_in_a_daemon" {
  command = plan

  variables {
    daemons = { a = "serviceAccount:d@acme-hosts.iam.gserviceaccount.com\n" }
  }

  expect_failures = [var.daemons]
}

# says: daemons must not name a project's default service account
run "refuses_a_service_agent_as_a_daemon" {
  command = plan

  variables {
    daemons = { a = "serviceAccount:service-123@compute-system.iam.gserviceaccount.com" }
  }

  expect_failures = [var.daemons]
}

# says: restore_members must be "group:EMAIL"
run "refuses_an_account_with_a_dot_behind_it_who_restores" {
  command = plan

  variables {
    restore_members = ["user:d@acme-hosts.iam.gserviceaccount.com."]
  }

  expect_failures = [var.restore_members]
}

# says: drill.members must be one or more of
run "refuses_a_drill_without_members" {
  command = plan

  variables {
    offsite = { project_id = "acme-offsite" }
    drill   = { members = null }
  }

  expect_failures = [var.drill]
}
