resource "google_kms_key_ring" "this" {
  count = var.kms == null ? 0 : 1

  project  = local.kms_project
  name     = local.kms_key_ring
  location = var.kms.location

  depends_on = [google_project_service.api]
}

# With neither a lien nor a copy elsewhere, one order deletes the project: the key that opens the key file, and the only backup of it or
# what opens that.
check "one_project" {
  assert {
    # A condition, and not one more "or", which is unknown where a key's name is.
    condition = var.kms == null || var.offsite != null || var.lien ? true : !contains(
      concat([var.project_id], [for key in values(local.cmek_keys["primary"]) : try(split("/", key)[1], "")]), local.kms_project
    )
    error_message = "The KMS key lies in one project with the only copy of the master key, or with what that is encrypted with: whoever deletes the project takes both. Set offsite, lien, or kms.project_id."
  }
}

# Wraps the master key. A keyfile names the version that it was wrapped with, so old versions must live: rotation adds, and never
# takes away.
resource "google_kms_crypto_key" "wrap" {
  # checkov:skip=CKV_GCP_82: it asks for prevent_destroy, which is gone with the block that has it; deletion_policy is in the state and guards that day too
  count = var.kms == null ? 0 : 1

  key_ring = google_kms_key_ring.this[0].id
  name     = var.kms.key
  purpose  = "ENCRYPT_DECRYPT"
  labels   = local.labels

  rotation_period            = "7776000s" # 90 days
  destroy_scheduled_duration = "7776000s" # 90 days, in which a destruction can be taken back; it cannot be changed later

  version_template {
    algorithm        = "GOOGLE_SYMMETRIC_ENCRYPTION"
    protection_level = var.kms.protection_level
  }

  # Never DELETE, which would destroy every version: a copy in Secret Manager can be made again from the key file, but what only
  # this key opens cannot. So with the protection off the key leaves the state and stays where it is.
  deletion_policy = var.deletion_protection ? "PREVENT" : "ABANDON"
}

# The daemon only unwraps.
resource "google_kms_crypto_key_iam_member" "daemon" {
  for_each = var.kms == null ? {} : var.daemons

  crypto_key_id = google_kms_crypto_key.wrap[0].id
  role          = "roles/cloudkms.cryptoKeyDecrypter"
  member        = each.value
}

resource "google_kms_crypto_key_iam_member" "operator" {
  for_each = var.kms == null ? {} : var.kms.operators

  crypto_key_id = google_kms_crypto_key.wrap[0].id
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = each.value
}

resource "google_kms_crypto_key_iam_member" "encrypter" {
  for_each = var.kms == null ? {} : var.kms.encrypters

  crypto_key_id = google_kms_crypto_key.wrap[0].id
  role          = "roles/cloudkms.cryptoKeyEncrypter"
  member        = each.value
}
