# What only an apply shows: how what is made is tied together. The provider is Terraform's mock, so nothing is made. In a file of its
# own, since values that a plan is to know and values that an apply makes up do not mix.

mock_provider "google" {
  mock_data "google_project" {
    defaults = { number = "123456789012" }
  }
}

variables {
  project_id      = "acme-secrets"
  daemons         = { a = "serviceAccount:daemon-a@acme-hosts.iam.gserviceaccount.com" }
  offsite         = { project_id = "acme-offsite" }
  restore_members = ["group:break-glass@example.com"]
  drill           = { members = ["group:operators@example.com"] }
  kms             = { location = "europe-west1", operators = ["group:security@example.com"], encrypters = ["group:deploy@example.com"] }
  alerts          = { emails = ["security@example.com"], channels = ["projects/acme-offsite/notificationChannels/7"] }
  lien            = true
}

run "everything_is_made_and_tied_together" {
  command = apply

  assert {
    condition     = google_kms_crypto_key.wrap[0].key_ring == google_kms_key_ring.this[0].id
    error_message = "the key lies in the ring"
  }
  assert {
    condition = alltrue([
      for grant in concat(values(google_kms_crypto_key_iam_member.daemon), values(google_kms_crypto_key_iam_member.operator), values(google_kms_crypto_key_iam_member.encrypter)) :
      grant.crypto_key_id == google_kms_crypto_key.wrap[0].id
    ])
    error_message = "grants are on the wrap key"
  }
  assert {
    condition     = alltrue([for copy in ["primary", "offsite"] : google_service_account_iam_member.restore["${copy} group:break-glass@example.com"].service_account_id == google_service_account.restore[copy].name])
    error_message = "the restore members impersonate each copy's account"
  }
  assert {
    condition     = google_service_account_iam_member.drill["group:operators@example.com"].service_account_id == google_service_account.drill["offsite"].name
    error_message = "the drill members impersonate the drill account"
  }
  assert {
    condition     = toset(google_monitoring_alert_policy.event["offsite-access"].notification_channels) == toset([google_monitoring_notification_channel.email["acme-offsite security@example.com"].name, "projects/acme-offsite/notificationChannels/7"])
    error_message = "the offsite copy's alerts go to the channels of its project"
  }
  assert {
    condition     = google_monitoring_alert_policy.event["primary-access"].notification_channels == tolist([google_monitoring_notification_channel.email["acme-secrets security@example.com"].name])
    error_message = "the primary copy's alerts go to the channels of its project"
  }
  assert {
    condition     = output.kms_key == "projects/acme-secrets/locations/europe-west1/keyRings/containarium/cryptoKeys/master"
    error_message = "the output names the key"
  }
}
