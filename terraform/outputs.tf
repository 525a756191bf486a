output "config" {
  description = "The daemon's settings for what is here: append it to /etc/containarium/config.toml. Nothing in it is secret."
  value       = local.config
  # Not before they can be used.
  depends_on = [
    google_secret_manager_secret_iam_member.daemon_adds,
    google_secret_manager_secret_iam_member.daemon_sees,
    google_kms_crypto_key_iam_member.daemon,
  ]
}

output "secrets" {
  description = "The secrets that hold copies of the master key, the primary one first: projects/PROJECT/secrets/SECRET."
  value       = local.secret_names
  depends_on  = [google_secret_manager_secret.key]
}

output "kms_key" {
  description = "The KMS key that wraps the master key; null without one."
  value       = var.kms == null ? null : local.wrap_key
  depends_on  = [google_kms_crypto_key.wrap]
}

output "restore_accounts" {
  description = "For each copy the account to impersonate for a restore; empty without restore_members."
  value       = local.restore_accounts
  depends_on  = [google_service_account.restore]
}

output "drill_account" {
  description = "The account to impersonate for the drill; null without one."
  value       = local.drill_account
  depends_on  = [google_service_account.drill]
}

locals {
  secret_names = [for copy in ["primary", "offsite"] : "projects/${local.copies[copy].project}/secrets/${local.copies[copy].secret_id}" if contains(keys(local.copies), copy)]

  # What JSON writes for these strings and booleans is TOML too: none of the names has a character that either escapes.
  config = join("\n", concat(
    ["[backup.gcp]", "secrets = ${jsonencode(local.secret_names)}", "push_on_first_start = ${jsonencode(var.push_on_first_start)}", ""],
    var.kms == null ? [] : ["[kms.gcp]", "key = ${jsonencode(local.wrap_key)}", ""],
  ))
}
