# What a plan may and must contain. Everything here is read from the plan: `terraform test` needs no account, and makes nothing.

mock_provider "google" {
  mock_data "google_project" {
    defaults = { number = "123456789012" }
  }
}

variables {
  project_id = "acme-secrets"
  daemons    = { a = "serviceAccount:daemon-a@acme-hosts.iam.gserviceaccount.com" }
}

run "ten_lines_make_one_protected_secret" {
  command = plan

  assert {
    condition     = [for secret in google_secret_manager_secret.key : "${secret.project}/${secret.secret_id}"] == ["acme-secrets/containarium-secrets-master"]
    error_message = "one secret, in the project that was named, with the name of v1's"
  }
  assert {
    condition     = alltrue([for secret in google_secret_manager_secret.key : secret.deletion_policy == "PREVENT"])
    error_message = "a plan that deletes a secret must fail by default"
  }
  assert {
    condition     = alltrue([for secret in google_secret_manager_secret.key : secret.deletion_protection])
    error_message = "deletion_protection must be on by default"
  }
  assert {
    condition     = alltrue([for secret in google_secret_manager_secret.key : secret.version_destroy_ttl == "2592000s"])
    error_message = "a destroyed version must stay for 30 days"
  }
  assert {
    condition     = alltrue([for secret in google_secret_manager_secret.key : secret.ttl == null && length(secret.rotation) == 0])
    error_message = "a copy must not expire"
  }
  assert {
    condition     = length(google_secret_manager_secret.key["primary"].replication[0].auto) == 1 && length(google_secret_manager_secret.key["primary"].replication[0].user_managed) == 0
    error_message = "Google chooses where, unless replicas are given"
  }
  assert {
    condition     = google_secret_manager_secret.key["primary"].labels == tomap({ app = "containarium", deployment = "containarium" })
    error_message = "labels name the app and the deployment"
  }
  assert {
    condition     = alltrue([for service in google_project_service.api : !service.disable_on_destroy]) && length(google_project_service.api) == 3
    error_message = "APIs are enabled, and stay so: another deployment may use them"
  }
}

run "what_is_optional_is_absent_by_default" {
  command = plan

  assert {
    condition     = length(google_kms_key_ring.this) == 0 && length(google_kms_crypto_key.wrap) == 0
    error_message = "no key ring and no key without kms"
  }
  assert {
    condition     = length(google_kms_crypto_key_iam_member.daemon) + length(google_kms_crypto_key_iam_member.operator) + length(google_kms_crypto_key_iam_member.encrypter) + length(google_kms_crypto_key_iam_member.cmek) == 0
    error_message = "no grant on a key without kms"
  }
  assert {
    condition     = !anytrue([for service in google_project_service.api : service.service == "cloudkms.googleapis.com"])
    error_message = "no KMS API without kms"
  }
  assert {
    condition     = output.kms_key == null && !strcontains(output.config, "kms")
    error_message = "the daemon's settings name no key without kms"
  }
  assert {
    condition     = length(google_service_account.restore) + length(google_service_account.drill) == 0 && output.restore_accounts == {} && output.drill_account == null
    error_message = "no account that reads payloads unless it is asked for"
  }
  assert {
    condition     = length(google_project_iam_audit_config.data_read) == 0
    error_message = "audit logs are authoritative, so only where asked for"
  }
  assert {
    condition     = length(google_monitoring_alert_policy.event) + length(google_monitoring_alert_policy.backup_age) + length(google_monitoring_notification_channel.email) == 0
    error_message = "no alerts unless asked for"
  }
  assert {
    condition     = length(google_resource_manager_lien.project) == 0 && length(data.google_project.this) == 0
    error_message = "no lien, and no look at the project, unless asked for"
  }
}

run "the_daemon_has_no_path_to_a_payload" {
  command = plan

  # All that there is, and open.
  variables {
    daemons         = { a = "serviceAccount:daemon-a@acme-hosts.iam.gserviceaccount.com", b = "principal://iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/subject/b" }
    offsite         = { project_id = "acme-offsite" }
    restore_members = ["group:break-glass@example.com"]
    restore_until   = timeadd(timestamp(), "24h")
    drill           = { members = { ci = "serviceAccount:drill@acme-ops.iam.gserviceaccount.com" } }
    kms             = { location = "europe-west1", operators = { security = "group:security@example.com" }, encrypters = { deploy = "group:deploy@example.com" } }
  }

  assert {
    condition = { for grant in concat(
      values(google_secret_manager_secret_iam_member.daemon_adds), values(google_secret_manager_secret_iam_member.daemon_sees),
      values(google_secret_manager_secret_iam_member.restore_reads), values(google_secret_manager_secret_iam_member.restore_sees),
      values(google_secret_manager_secret_iam_member.drill_reads), values(google_secret_manager_secret_iam_member.drill_sees),
      ) : grant.member => "${grant.project} ${grant.role}"... if contains(values(var.daemons), grant.member) } == { for member in values(var.daemons) : member => [
      "acme-offsite roles/secretmanager.secretVersionAdder", "acme-secrets roles/secretmanager.secretVersionAdder",
      "acme-offsite projects/acme-offsite/roles/containarium_backup", "acme-secrets projects/acme-secrets/roles/containarium_backup",
    ] }
    error_message = "on each copy a daemon may add versions and see them, and nothing else"
  }
  assert {
    condition = { for copy, role in google_project_iam_custom_role.backup : "${copy} ${role.project} ${role.role_id}" => sort(role.permissions) } == { for at in ["offsite acme-offsite", "primary acme-secrets"] :
    "${at} containarium_backup" => tolist(["secretmanager.secrets.get", "secretmanager.versions.get", "secretmanager.versions.list"]) }
    error_message = "the daemon's role reads no payload and changes nothing"
  }
  assert {
    condition     = { for grant in concat(values(google_kms_crypto_key_iam_member.daemon), values(google_kms_crypto_key_iam_member.operator), values(google_kms_crypto_key_iam_member.encrypter)) : grant.member => grant.role... } == merge({ for member in values(var.daemons) : member => ["roles/cloudkms.cryptoKeyDecrypter"] }, { "group:security@example.com" = ["roles/cloudkms.cryptoKeyEncrypterDecrypter"], "group:deploy@example.com" = ["roles/cloudkms.cryptoKeyEncrypter"] })
    error_message = "a daemon only unwraps; operators wrap and rewrap; encrypters only wrap"
  }
  assert {
    condition     = [for grant in concat(values(google_service_account_iam_member.restore), values(google_service_account_iam_member.drill)) : "${grant.member} ${grant.role}"] == ["group:break-glass@example.com roles/iam.serviceAccountTokenCreator", "group:break-glass@example.com roles/iam.serviceAccountTokenCreator", "serviceAccount:drill@acme-ops.iam.gserviceaccount.com roles/iam.serviceAccountTokenCreator"]
    error_message = "the restore accounts are the restore members' to impersonate, the drill account its members', and nobody else's"
  }
}

run "a_restore_reads_nothing_before_it_is_opened" {
  command = plan

  variables {
    offsite         = { project_id = "acme-offsite" }
    restore_members = ["group:break-glass@example.com"]
  }

  assert {
    condition     = { for copy, account in google_service_account.restore : copy => "${account.project}/${account.account_id}" } == { primary = "acme-secrets/containarium-restore", offsite = "acme-offsite/containarium-restore" }
    error_message = "each copy has an account in its own project"
  }
  assert {
    condition     = length(google_secret_manager_secret_iam_member.restore_reads) + length(google_secret_manager_secret_iam_member.restore_sees) == 0
    error_message = "closed: no grant at all"
  }
}

run "a_restore_is_boxed_in_time" {
  command = plan

  variables {
    offsite         = { project_id = "acme-offsite" }
    restore_members = ["group:break-glass@example.com"]
    # A window that has closed does not stop plans.
    restore_until = "2026-01-31T18:00:00Z"
  }

  assert {
    condition = { for copy, grant in google_secret_manager_secret_iam_member.restore_reads : copy => [grant.project, grant.secret_id, grant.role, grant.member] } == {
      primary = ["acme-secrets", "containarium-secrets-master", "roles/secretmanager.secretAccessor", "serviceAccount:containarium-restore@acme-secrets.iam.gserviceaccount.com"]
      offsite = ["acme-offsite", "containarium-secrets-master", "roles/secretmanager.secretAccessor", "serviceAccount:containarium-restore@acme-offsite.iam.gserviceaccount.com"]
    }
    error_message = "each account reads its own copy"
  }
  assert {
    condition     = alltrue([for grant in values(google_secret_manager_secret_iam_member.restore_reads) : grant.condition[0].expression == "request.time < timestamp(\"2026-01-31T18:00:00Z\")"])
    error_message = "reading ends by itself"
  }
  assert {
    condition     = alltrue([for grant in values(google_secret_manager_secret_iam_member.restore_sees) : grant.condition[0].expression == "request.time < timestamp(\"2026-01-31T18:00:00Z\")" && grant.role == "projects/${grant.project}/roles/containarium_restore"])
    error_message = "seeing ends by itself"
  }
  assert {
    condition     = keys(google_secret_manager_secret_iam_member.restore_sees) == ["offsite", "primary"] && keys(google_project_iam_custom_role.restore) == ["offsite", "primary"]
    error_message = "each account finds the versions of its own copy"
  }
  assert {
    condition     = alltrue([for role in values(google_project_iam_custom_role.restore) : sort(role.permissions) == tolist(["secretmanager.versions.get", "secretmanager.versions.list"])])
    error_message = "the role beside the accessor's only finds versions"
  }
}

run "a_drill_reads_the_offsite_copy_only" {
  command = plan

  variables {
    offsite = { project_id = "acme-offsite" }
    drill   = { members = { ci = "serviceAccount:drill@acme-ops.iam.gserviceaccount.com" } }
  }

  assert {
    condition = [for grant in concat(values(google_secret_manager_secret_iam_member.drill_reads), values(google_secret_manager_secret_iam_member.drill_sees)) : [grant.project, grant.role, grant.member]] == [
      ["acme-offsite", "roles/secretmanager.secretAccessor", "serviceAccount:containarium-drill@acme-offsite.iam.gserviceaccount.com"],
      ["acme-offsite", "projects/acme-offsite/roles/containarium_restore", "serviceAccount:containarium-drill@acme-offsite.iam.gserviceaccount.com"],
    ]
    error_message = "the drill account reads and finds the offsite copy, and nothing else"
  }
  assert {
    condition     = keys(google_project_iam_custom_role.restore) == ["offsite"] && output.drill_account == "containarium-drill@acme-offsite.iam.gserviceaccount.com"
    error_message = "the drill account and its role are in the offsite project only"
  }
}

run "an_offsite_copy_is_as_the_primary_one" {
  command = plan

  variables {
    name    = "containarium-prod"
    labels  = { team = "security" }
    offsite = { project_id = "acme-offsite", secret_id = "master-copy", replication = { replicas = { europe-north1 = {}, europe-west4 = {} } } }
  }

  assert {
    condition     = output.secrets == ["projects/acme-secrets/secrets/containarium-prod-secrets-master", "projects/acme-offsite/secrets/master-copy"]
    error_message = "primary first, each with its name"
  }
  assert {
    condition = alltrue([for secret in google_secret_manager_secret.key :
      secret.deletion_policy == "PREVENT" && secret.deletion_protection && secret.version_destroy_ttl == "2592000s" && secret.labels == tomap({ app = "containarium", deployment = "containarium-prod", team = "security" })
    ])
    error_message = "both copies have the same protection and labels"
  }
  assert {
    condition     = google_secret_manager_secret.key["offsite"].replication[0].user_managed[0].replicas[*].location == tolist(["europe-north1", "europe-west4"]) && length(google_secret_manager_secret.key["offsite"].replication[0].auto) == 0
    error_message = "replicas lie where they are asked for"
  }
  assert {
    condition     = sort([for service in google_project_service.api : service.project if service.service == "secretmanager.googleapis.com"]) == tolist(["acme-offsite", "acme-secrets"])
    error_message = "the API is enabled in both projects"
  }
}

run "the_kms_key_is_protected_and_rotates" {
  command = plan

  variables {
    kms = { location = "europe-west1", project_id = "acme-kms" }
  }

  assert {
    condition     = google_kms_crypto_key.wrap[0].deletion_policy == "PREVENT"
    error_message = "a plan that destroys the key's versions must fail by default"
  }
  assert {
    condition     = google_kms_crypto_key.wrap[0].destroy_scheduled_duration == "7776000s"
    error_message = "a destroyed key version must be there for 90 days"
  }
  assert {
    condition     = google_kms_crypto_key.wrap[0].rotation_period == "7776000s" && google_kms_crypto_key.wrap[0].purpose == "ENCRYPT_DECRYPT"
    error_message = "the key encrypts, decrypts, and rotates each 90 days"
  }
  assert {
    condition     = google_kms_crypto_key.wrap[0].version_template[0].algorithm == "GOOGLE_SYMMETRIC_ENCRYPTION" && google_kms_crypto_key.wrap[0].version_template[0].protection_level == "HSM"
    error_message = "the key lies in an HSM unless asked otherwise"
  }
  assert {
    condition     = google_kms_key_ring.this[0].project == "acme-kms" && google_kms_key_ring.this[0].location == "europe-west1" && google_kms_key_ring.this[0].name == "containarium" && google_kms_crypto_key.wrap[0].name == "master"
    error_message = "ring and key are named after the deployment, in the project that was named"
  }
  assert {
    condition     = google_kms_crypto_key.wrap[0].labels == tomap({ app = "containarium", deployment = "containarium" })
    error_message = "the key has the labels"
  }
  assert {
    condition     = output.kms_key == "projects/acme-kms/locations/europe-west1/keyRings/containarium/cryptoKeys/master"
    error_message = "the output is the key's full name"
  }
  assert {
    condition     = anytrue([for service in google_project_service.api : service.service == "cloudkms.googleapis.com" && service.project == "acme-kms"])
    error_message = "the KMS API is enabled in the key's project"
  }
}

run "without_protection_a_copy_may_go_but_never_the_kms_key" {
  command = plan

  variables {
    deletion_protection = false
    lien                = true
    kms                 = { location = "europe-west1" }
  }

  assert {
    condition     = google_secret_manager_secret.key["primary"].deletion_policy == "DELETE" && !google_secret_manager_secret.key["primary"].deletion_protection && google_resource_manager_lien.project["acme-secrets"].deletion_policy == "DELETE"
    error_message = "the operator may take it down, in two steps"
  }
  assert {
    condition     = google_kms_crypto_key.wrap[0].deletion_policy == "ABANDON"
    error_message = "no plan destroys the versions of the KMS key"
  }
}

run "the_key_and_the_only_copy_in_one_project_are_warned_of" {
  command = plan

  variables {
    kms = { location = "europe-west1" }
  }

  expect_failures = [check.one_project]
}

run "the_key_beside_what_encrypts_the_only_copy_is_warned_of" {
  command = plan

  variables {
    kms         = { location = "europe-west1", project_id = "acme-kms" }
    replication = { cmek = { key = "projects/acme-kms/locations/global/keyRings/copies/cryptoKeys/k" } }
  }

  expect_failures = [check.one_project]
}

run "a_lien_is_on_every_project" {
  command = plan

  variables {
    lien    = true
    offsite = { project_id = "acme-offsite" }
    kms     = { location = "europe-west1", project_id = "acme-kms" }
  }

  assert {
    condition     = keys(google_resource_manager_lien.project) == ["acme-kms", "acme-offsite", "acme-secrets"]
    error_message = "copies and key: none of their projects can be deleted"
  }
  assert {
    condition     = alltrue([for lien in google_resource_manager_lien.project : lien.restrictions == tolist(["resourcemanager.projects.delete"]) && lien.parent == "projects/123456789012" && lien.deletion_policy == "PREVENT"])
    error_message = "a lien forbids the project's deletion, and is protected itself"
  }
  assert {
    condition     = sort([for service in google_project_service.api : service.project if service.service == "cloudresourcemanager.googleapis.com"]) == tolist(["acme-kms", "acme-offsite", "acme-secrets"])
    error_message = "the API that liens go by is enabled in each project"
  }
}

run "a_key_of_the_operators_encrypts_each_copy" {
  command = plan

  variables {
    replication = { cmek = { key = "projects/acme-cmek/locations/global/keyRings/r/cryptoKeys/one" } }
    offsite = {
      project_id = "acme-offsite"
      replication = { replicas = {
        europe-north1 = { cmek = { key = "projects/acme-cmek-offsite/locations/europe-north1/keyRings/r/cryptoKeys/two" } }
        europe-west4  = { cmek = { key = "projects/acme-cmek-offsite/locations/europe-west4/keyRings/r/cryptoKeys/three" } }
      } }
    }
  }

  assert {
    condition     = google_secret_manager_secret.key["primary"].replication[0].auto[0].customer_managed_encryption[0].kms_key_name == "projects/acme-cmek/locations/global/keyRings/r/cryptoKeys/one"
    error_message = "automatic replication with the operator's key"
  }
  assert {
    condition = [for replica in google_secret_manager_secret.key["offsite"].replication[0].user_managed[0].replicas : replica.customer_managed_encryption[0].kms_key_name] == [
      "projects/acme-cmek-offsite/locations/europe-north1/keyRings/r/cryptoKeys/two", "projects/acme-cmek-offsite/locations/europe-west4/keyRings/r/cryptoKeys/three",
    ]
    error_message = "each replica with its own key"
  }
  assert {
    condition     = length(google_kms_crypto_key_iam_member.cmek) == 3 && alltrue([for grant in google_kms_crypto_key_iam_member.cmek : grant.role == "roles/cloudkms.cryptoKeyEncrypterDecrypter" && grant.member == "serviceAccount:service-123456789012@gcp-sa-secretmanager.iam.gserviceaccount.com"])
    error_message = "Secret Manager's service agent may use each of the keys"
  }
}

run "reads_are_logged_where_asked_for" {
  command = plan

  variables {
    audit_logs = true
    offsite    = { project_id = "acme-offsite" }
    kms        = { location = "europe-west1", project_id = "acme-kms" }
  }

  assert {
    condition     = [for config in google_project_iam_audit_config.data_read : "${config.project} ${config.service}"] == ["acme-kms cloudkms.googleapis.com", "acme-offsite secretmanager.googleapis.com", "acme-secrets secretmanager.googleapis.com"]
    error_message = "Secret Manager in each copy's project, KMS in the key's"
  }
  assert {
    condition     = alltrue([for config in google_project_iam_audit_config.data_read : [for log in config.audit_log_config : log.log_type] == ["DATA_READ"] && alltrue([for log in config.audit_log_config : log.exempted_members == null])])
    error_message = "reads are logged, of everybody"
  }
}

run "alerts_tell_of_what_matters" {
  command = plan

  variables {
    offsite = { project_id = "acme-offsite" }
    kms     = { location = "europe-west1", project_id = "acme-kms" }
    alerts  = { emails = ["security@example.com"], channels = ["projects/acme-kms/notificationChannels/7"], backup_age = true }
  }

  assert {
    condition = { for event, policy in google_monitoring_alert_policy.event : event => policy.project } == {
      primary-access = "acme-secrets", primary-destroy = "acme-secrets", primary-secret = "acme-secrets", primary-rights = "acme-secrets"
      offsite-access = "acme-offsite", offsite-destroy = "acme-offsite", offsite-secret = "acme-offsite", offsite-rights = "acme-offsite"
      kms-destroy    = "acme-kms", kms-rights = "acme-kms"
    }
    error_message = "each event of each copy, and of the key, in its own project"
  }
  assert {
    condition     = alltrue([for policy in google_monitoring_alert_policy.event : length(policy.conditions) == 1 && length(policy.conditions[0].condition_matched_log) == 1 && policy.alert_strategy[0].notification_rate_limit[0].period == "300s"])
    error_message = "a log condition is its policy's only one, with a limit of notifications"
  }
  assert {
    condition = alltrue([for event, words in {
      access  = ["AccessSecretVersion"]
      destroy = ["DisableSecretVersion", "DestroySecretVersion"]
      secret  = ["DeleteSecret", "UpdateSecret"]
      rights  = ["secretmanager.googleapis.com", "SetIamPolicy", "containarium-(restore|drill)@", "UpdateRole", "(Create|Upload)ServiceAccountKey", "iam\\.(serviceAccount|workloadIdentity|securityAdmin)", "(projects|organizations)/", "cloudresourcemanager.googleapis.com"]
      } : alltrue([for copy in ["primary", "offsite"] : alltrue([for word in words :
        strcontains(google_monitoring_alert_policy.event["${copy}-${event}"].conditions[0].condition_matched_log[0].filter, word)
      ]) && strcontains(google_monitoring_alert_policy.event["${copy}-${event}"].conditions[0].condition_matched_log[0].filter, "/secrets/containarium-secrets-master")])
    ])
    error_message = "each filter names its methods and the secret"
  }
  assert {
    condition     = alltrue([for word in ["DestroyCryptoKeyVersion", "UpdateCryptoKeyVersion", "/keyRings/containarium/cryptoKeys/master"] : strcontains(google_monitoring_alert_policy.event["kms-destroy"].conditions[0].condition_matched_log[0].filter, word)])
    error_message = "the destruction of a key version is noticed"
  }
  assert {
    condition     = alltrue([for word in ["/keyRings/containarium(/cryptoKeys/master)?$", "cloudkms\\.", "iam\\.securityAdmin", "(projects|organizations)/", "UpdateRole"] : strcontains(google_monitoring_alert_policy.event["kms-rights"].conditions[0].condition_matched_log[0].filter, word)])
    error_message = "a right on the key, its ring, or project-wide is noticed"
  }
  assert {
    condition     = [for channel in google_monitoring_notification_channel.email : "${channel.project} ${channel.type} ${channel.labels.email_address}"] == ["acme-kms email security@example.com", "acme-offsite email security@example.com", "acme-secrets email security@example.com"]
    error_message = "an address has a channel in each project"
  }
  assert {
    condition     = google_monitoring_alert_policy.backup_age["acme-secrets"].conditions[0].condition_prometheus_query_language[0].query == "(time() - min(containarium_key_backup_verified_timestamp_seconds > 0 or containarium_master_key_created_timestamp_seconds)) > 35 * 86400 or absent(containarium_key_backup_verified_timestamp_seconds)"
    error_message = "a backup that nobody proves is noticed by the daemon's own metric"
  }
}

run "the_settings_are_the_daemons" {
  command = plan

  variables {
    push_on_first_start = false
    secret_id           = "containarium_master"
    offsite             = { project_id = "acme-offsite" }
    kms                 = { location = "europe-west1", key_ring = "keys", key = "wrap" }
  }

  assert {
    condition     = output.config == <<-EOT
      [backup.gcp]
      secrets = ["projects/acme-secrets/secrets/containarium_master","projects/acme-offsite/secrets/containarium_master"]
      push_on_first_start = false

      [kms.gcp]
      key = "projects/acme-secrets/locations/europe-west1/keyRings/keys/cryptoKeys/wrap"
    EOT
    error_message = "the fragment has every secret, the primary one first, and the key"
  }
}
