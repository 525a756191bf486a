# What plan.tftest.hcl plans: accounts and keys that are made by the same apply, so that no plan knows
# their names. They must be values in the module, and never keys of a for_each.

terraform {
  required_version = ">= 1.9.0"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 7.33.0, < 9.0.0"
    }
  }
}

resource "google_service_account" "made" {
  for_each = toset(["daemon", "drill", "operator", "encrypter"])

  project    = "acme-hosts"
  account_id = each.key
}

resource "google_kms_key_ring" "made" {
  for_each = { global = "acme-cmek", europe-west1 = "acme-cmek-offsite" }

  project  = each.value
  name     = "copies"
  location = each.key
}

resource "google_kms_crypto_key" "made" {
  # checkov:skip=CKV_GCP_43: nothing is made of it
  # checkov:skip=CKV_GCP_82: nothing is made of it
  for_each = google_kms_key_ring.made

  key_ring = each.value.id
  name     = "copies"
}

module "containarium" {
  source = "../.."

  project_id  = "acme-secrets"
  daemons     = { host = google_service_account.made["daemon"].member }
  replication = { cmek = { key = google_kms_crypto_key.made["global"].id } }
  offsite = {
    project_id  = "acme-offsite"
    replication = { replicas = { europe-west1 = { cmek = { key = google_kms_crypto_key.made["europe-west1"].id } } } }
  }
  drill = { members = { ci = google_service_account.made["drill"].member } }
  kms = {
    location   = "europe-west1"
    project_id = "acme-kms"
    operators  = { ci = google_service_account.made["operator"].member }
    encrypters = { ci = google_service_account.made["encrypter"].member }
  }
}

output "secrets" {
  description = "That it was planned."
  value       = module.containarium.secrets
}
