# Who changed what is always logged (admin activity). Who read a payload is not, unless DATA_READ is on. The resource is authoritative
# for its project and service, which is why it is asked for and not assumed.

locals {
  audited = var.audit_logs ? merge(
    { for copy in local.copies : "${copy.project} secretmanager.googleapis.com" => { project = copy.project, service = "secretmanager.googleapis.com" } },
    var.kms == null ? {} : { "${local.kms_project} cloudkms.googleapis.com" = { project = local.kms_project, service = "cloudkms.googleapis.com" } },
  ) : {}
}

resource "google_project_iam_audit_config" "data_read" {
  for_each = local.audited

  project = each.value.project
  service = each.value.service

  # No exempted_members: the reader that would be left out is the one to see.
  audit_log_config {
    log_type = "DATA_READ"
  }
}
