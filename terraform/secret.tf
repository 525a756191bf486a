# The copies of the master key. Their versions are the daemon's business: none is in the configuration or the state.
resource "google_secret_manager_secret" "key" {
  for_each = local.copies

  project   = each.value.project
  secret_id = each.value.secret_id
  labels    = local.labels

  replication {
    dynamic "auto" {
      for_each = length(each.value.replication.replicas) == 0 ? [each.value.replication] : []
      content {
        dynamic "customer_managed_encryption" {
          for_each = auto.value.cmek_key[*]
          content {
            kms_key_name = customer_managed_encryption.value
          }
        }
      }
    }
    dynamic "user_managed" {
      for_each = length(each.value.replication.replicas) > 0 ? [each.value.replication.replicas] : []
      content {
        dynamic "replicas" {
          for_each = user_managed.value
          content {
            location = replicas.key
            dynamic "customer_managed_encryption" {
              for_each = replicas.value.cmek_key[*]
              content {
                kms_key_name = customer_managed_encryption.value
              }
            }
          }
        }
      }
    }
  }

  # A version that somebody destroys is only disabled for 30 days, and can be had back.
  version_destroy_ttl = "2592000s"

  # Both: deletion_protection is older, deletion_policy is what a later provider keeps. A replacement is a deletion too.
  deletion_protection = var.deletion_protection
  deletion_policy     = var.deletion_protection ? "PREVENT" : "DELETE"

  lifecycle {
    # Operators set these by hand, on a bad day.
    ignore_changes = [version_aliases, annotations]
  }

  depends_on = [google_project_service.api, google_kms_crypto_key_iam_member.cmek]
}

# A lien and a service agent go by the project's number.
data "google_project" "this" {
  for_each = var.lien || length(flatten(values(local.cmek_keys))) > 0 ? local.projects : toset([])

  project_id = each.key
}

locals {
  cmek_grants = merge([
    for copy, keys in local.cmek_keys : { for key in keys : "${copy} ${key}" => { project = local.copies[copy].project, key = key } }
  ]...)
}

# Secret Manager's service agent encrypts with the operator's key; without the grant the secret cannot be created.
resource "google_kms_crypto_key_iam_member" "cmek" {
  for_each = local.cmek_grants

  crypto_key_id = each.value.key
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = "serviceAccount:service-${data.google_project.this[each.value.project].number}@gcp-sa-secretmanager.iam.gserviceaccount.com"
}

resource "google_resource_manager_lien" "project" {
  for_each = var.lien ? local.projects : toset([])

  parent          = "projects/${data.google_project.this[each.key].number}"
  restrictions    = ["resourcemanager.projects.delete"]
  origin          = "containarium"
  reason          = "Holds a copy of the master key of ${var.name}, or the key that wraps it: without it secrets are lost for good."
  deletion_policy = var.deletion_protection ? "PREVENT" : "DELETE"
}

locals {
  # iamcredentials: to impersonate the restore and drill accounts.
  copy_apis = ["secretmanager.googleapis.com", "iam.googleapis.com", "iamcredentials.googleapis.com"]
  apis = var.enable_apis ? merge(
    merge([for copy in local.copies : { for api in local.copy_apis : "${copy.project} ${api}" => { project = copy.project, api = api } }]...),
    var.kms == null ? {} : { "${local.kms_project} cloudkms.googleapis.com" = { project = local.kms_project, api = "cloudkms.googleapis.com" } },
    var.alerts == null ? {} : { for project in local.projects : "${project} monitoring.googleapis.com" => { project = project, api = "monitoring.googleapis.com" } },
  ) : {}
}

resource "google_project_service" "api" {
  for_each = local.apis

  project            = each.value.project
  service            = each.value.api
  disable_on_destroy = false
}
