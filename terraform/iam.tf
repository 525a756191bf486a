# Every grant is on one secret or one key, never on a project. Grants add to what is there (…_iam_member): who else has rights is for
# the operator to see, and the alert on changed rights to say.

locals {
  role_prefix = replace(var.name, "-", "_")
  daemon_grants = merge([
    for copy in keys(local.copies) : { for word, member in var.daemons : "${copy} ${word}" => { copy = copy, member = member } }
  ]...)

  restore_copies = length(var.restore_members) > 0 ? local.copies : {}
  restore_open   = var.restore_until == null ? {} : local.restore_copies
  # Written out and not read from the account, so that a plan shows who gets what.
  restore_accounts = { for copy, at in local.restore_copies : copy => "${var.name}-restore@${at.project}.iam.gserviceaccount.com" }
  restore_grants = merge([
    for copy in keys(local.restore_copies) : { for member in var.restore_members : "${copy} ${member}" => { copy = copy, member = member } }
  ]...)

  drill         = var.drill == null ? {} : { for copy, at in local.copies : copy => at if copy == "offsite" }
  drill_account = one([for at in values(local.drill) : "${var.name}-drill@${at.project}.iam.gserviceaccount.com"])
}

# ---- the daemon: adds versions and sees what is there; no payload, and no secrets.update (an expiry could delete the secret)

resource "google_project_iam_custom_role" "backup" {
  for_each = local.copies

  project     = each.value.project
  role_id     = "${local.role_prefix}_backup"
  title       = "${var.name}: see the backups of the master key"
  description = "For the daemon, beside the right to add a version. Reads no payload and changes nothing."
  permissions = ["secretmanager.secrets.get", "secretmanager.versions.get", "secretmanager.versions.list"]

  depends_on = [google_project_service.api]
}

resource "google_secret_manager_secret_iam_member" "daemon_adds" {
  for_each = local.daemon_grants

  project   = local.copies[each.value.copy].project
  secret_id = google_secret_manager_secret.key[each.value.copy].secret_id
  role      = "roles/secretmanager.secretVersionAdder"
  member    = each.value.member
}

resource "google_secret_manager_secret_iam_member" "daemon_sees" {
  for_each = local.daemon_grants

  project   = local.copies[each.value.copy].project
  secret_id = google_secret_manager_secret.key[each.value.copy].secret_id
  role      = "projects/${local.copies[each.value.copy].project}/roles/${local.role_prefix}_backup"
  member    = each.value.member

  depends_on = [google_project_iam_custom_role.backup]
}

# ---- restore: breaks the glass. One account in each copy's own project: the one in a deleted project is gone with it.

resource "google_project_iam_custom_role" "restore" {
  for_each = merge(local.restore_copies, local.drill)

  project     = each.value.project
  role_id     = "${local.role_prefix}_restore"
  title       = "${var.name}: find a backup of the master key"
  description = "For restore and drill, beside the right to access payloads."
  permissions = ["secretmanager.versions.get", "secretmanager.versions.list"]

  depends_on = [google_project_service.api]
}

resource "google_service_account" "restore" {
  for_each = local.restore_copies

  project      = each.value.project
  account_id   = "${var.name}-restore"
  display_name = "${var.name}: restore of the master key"
  description  = "Break glass. Reads nothing unless restore_until is set, and then only until that time."

  depends_on = [google_project_service.api]
}

resource "google_service_account_iam_member" "restore" {
  for_each = local.restore_grants

  service_account_id = google_service_account.restore[each.value.copy].name
  role               = "roles/iam.serviceAccountTokenCreator"
  member             = each.value.member
}

resource "google_secret_manager_secret_iam_member" "restore_reads" {
  for_each = local.restore_open

  project   = each.value.project
  secret_id = google_secret_manager_secret.key[each.key].secret_id
  role      = "roles/secretmanager.secretAccessor"
  member    = "serviceAccount:${local.restore_accounts[each.key]}"

  condition {
    title       = "restore window"
    description = "Closes by itself."
    expression  = "request.time < timestamp(\"${var.restore_until}\")"
  }

  depends_on = [google_service_account.restore]
}

resource "google_secret_manager_secret_iam_member" "restore_sees" {
  for_each = local.restore_open

  project   = each.value.project
  secret_id = google_secret_manager_secret.key[each.key].secret_id
  role      = "projects/${each.value.project}/roles/${local.role_prefix}_restore"
  member    = "serviceAccount:${local.restore_accounts[each.key]}"

  condition {
    title       = "restore window"
    description = "Closes by itself."
    expression  = "request.time < timestamp(\"${var.restore_until}\")"
  }

  depends_on = [google_service_account.restore, google_project_iam_custom_role.restore]
}

# ---- drill: proves each month that a copy can be read and opens the database; standing, so on the offsite copy only

resource "google_service_account" "drill" {
  for_each = local.drill

  project      = each.value.project
  account_id   = "${var.name}-drill"
  display_name = "${var.name}: drill"
  description  = "Reads the offsite copy of the master key, to prove that it can be."

  depends_on = [google_project_service.api]
}

resource "google_service_account_iam_member" "drill" {
  for_each = var.drill == null ? toset([]) : var.drill.members

  service_account_id = google_service_account.drill["offsite"].name
  role               = "roles/iam.serviceAccountTokenCreator"
  member             = each.key
}

resource "google_secret_manager_secret_iam_member" "drill_reads" {
  for_each = local.drill

  project   = each.value.project
  secret_id = google_secret_manager_secret.key[each.key].secret_id
  role      = "roles/secretmanager.secretAccessor"
  member    = "serviceAccount:${local.drill_account}"

  depends_on = [google_service_account.drill]
}

resource "google_secret_manager_secret_iam_member" "drill_sees" {
  for_each = local.drill

  project   = each.value.project
  secret_id = google_secret_manager_secret.key[each.key].secret_id
  role      = "projects/${each.value.project}/roles/${local.role_prefix}_restore"
  member    = "serviceAccount:${local.drill_account}"

  depends_on = [google_service_account.drill, google_project_iam_custom_role.restore]
}
