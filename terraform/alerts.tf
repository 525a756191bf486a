# One policy for each event and project: a condition that matches logs must be its policy's only one. Resource names in logs have the
# project's number, so they are matched by their end.

locals {
  alert_copies = var.alerts == null ? {} : local.copies
  alert_events = merge(
    merge([for copy, at in local.alert_copies : {
      "${copy}-access" = {
        project  = at.project
        title    = "the master key's ${copy} copy was read"
        severity = "CRITICAL"
        text     = "Somebody accessed a payload of ${at.secret_id}. If it is not a restore or a drill that you know of, it is a theft of the master key."
        filter   = <<-EOT
          protoPayload.serviceName="secretmanager.googleapis.com"
          protoPayload.methodName=~"\.AccessSecretVersion$"
          protoPayload.resourceName=~"^projects/[^/]+/secrets/${at.secret_id}/versions/"
        EOT
      }
      "${copy}-destroy" = {
        project  = at.project
        title    = "a version of the master key's ${copy} copy was disabled or destroyed"
        severity = "CRITICAL"
        text     = "A destroyed version stays disabled for 30 days: enable it again before then, if a backup of the database still needs it."
        filter   = <<-EOT
          protoPayload.serviceName="secretmanager.googleapis.com"
          protoPayload.methodName=~"\.(DisableSecretVersion|DestroySecretVersion)$"
          protoPayload.resourceName=~"^projects/[^/]+/secrets/${at.secret_id}/versions/"
        EOT
      }
      "${copy}-secret" = {
        project  = at.project
        title    = "the secret of the master key's ${copy} copy was deleted or changed"
        severity = "CRITICAL"
        text     = "Deleting ${at.secret_id} takes every version with it, at once. A change can set an expiry, which deletes it later. Terraform's own changes show here too."
        filter   = <<-EOT
          protoPayload.serviceName="secretmanager.googleapis.com"
          protoPayload.methodName=~"\.(DeleteSecret|UpdateSecret)$"
          protoPayload.resourceName=~"^projects/[^/]+/secrets/${at.secret_id}$"
        EOT
      }
      "${copy}-rights" = {
        project  = at.project
        title    = "rights on the master key's ${copy} copy were changed"
        severity = "WARNING"
        text     = "On the secret itself, on the accounts that may read it, in any custom role of the project, by a key made for one of those accounts, or project-wide with a role that reaches it or may (a role of your own)."
        filter   = <<-EOT
          (protoPayload.serviceName="secretmanager.googleapis.com" AND protoPayload.methodName=~"\.SetIamPolicy$" AND protoPayload.resourceName=~"^projects/[^/]+/secrets/${at.secret_id}$")
          OR (protoPayload.serviceName="iam.googleapis.com" AND protoPayload.methodName=~"SetI[Aa][Mm]Policy$" AND resource.labels.email_id=~"^${var.name}-(restore|drill)@")
          OR (protoPayload.serviceName="iam.googleapis.com" AND protoPayload.methodName=~"\.UpdateRole$")
          OR (protoPayload.serviceName="iam.googleapis.com" AND protoPayload.methodName=~"(Create|Upload)ServiceAccountKey$" AND resource.labels.email_id=~"^${var.name}-(restore|drill)@")
          OR (protoPayload.serviceName="cloudresourcemanager.googleapis.com" AND protoPayload.methodName=~"SetIamPolicy$" AND protoPayload.serviceData.policyDelta.bindingDeltas.role=~"^(roles/(owner|secretmanager\.|resourcemanager\.|iam\.(serviceAccount|workloadIdentity|securityAdmin))|(projects|organizations)/)")
        EOT
      }
    }]...),
    var.alerts == null || var.kms == null ? {} : {
      "kms-destroy" = {
        project  = local.kms_project
        title    = "a version of the KMS key that wraps the master key was disabled or destroyed"
        severity = "CRITICAL"
        text     = "A destruction can be taken back for 90 days. Key files that this version wrapped cannot be opened meanwhile."
        filter   = <<-EOT
          protoPayload.serviceName="cloudkms.googleapis.com"
          protoPayload.methodName=~"(DestroyCryptoKeyVersion|UpdateCryptoKeyVersion|DeleteCryptoKeyVersion|DeleteCryptoKey)$"
          protoPayload.resourceName=~"/keyRings/${local.kms_key_ring}/cryptoKeys/${var.kms.key}(/|$)"
        EOT
      }
      "kms-rights" = {
        project  = local.kms_project
        title    = "rights on the KMS key that wraps the master key were changed"
        severity = "WARNING"
        text     = "On the key, its key ring, or project-wide with a role that reaches it."
        filter   = <<-EOT
          (protoPayload.serviceName="cloudkms.googleapis.com" AND protoPayload.methodName=~"SetIamPolicy$" AND protoPayload.resourceName=~"/keyRings/${local.kms_key_ring}(/cryptoKeys/${var.kms.key})?$")
          OR (protoPayload.serviceName="iam.googleapis.com" AND protoPayload.methodName=~"\.UpdateRole$")
          OR (protoPayload.serviceName="cloudresourcemanager.googleapis.com" AND protoPayload.methodName=~"SetIamPolicy$" AND protoPayload.serviceData.policyDelta.bindingDeltas.role=~"^(roles/(owner|cloudkms\.|resourcemanager\.|iam\.securityAdmin)|(projects|organizations)/)")
        EOT
      }
    },
  )

  alert_projects = var.alerts == null ? toset([]) : local.projects
  alert_emails = merge([for project in local.alert_projects : {
    for email in var.alerts.emails : "${project} ${email}" => { project = project, email = email }
  }]...)
  alert_channels = { for project in local.alert_projects : project => concat(
    [for key, at in local.alert_emails : google_monitoring_notification_channel.email[key].name if at.project == project],
    [for channel in var.alerts.channels : channel if startswith(channel, "projects/${project}/")],
  ) }
}

resource "google_monitoring_notification_channel" "email" {
  for_each = local.alert_emails

  project      = each.value.project
  type         = "email"
  display_name = "${var.name}: ${each.value.email}"
  labels       = { email_address = each.value.email }

  depends_on = [google_project_service.api]
}

resource "google_monitoring_alert_policy" "event" {
  for_each = local.alert_events

  project               = each.value.project
  display_name          = "${var.name}: ${each.value.title}"
  combiner              = "OR"
  severity              = each.value.severity
  notification_channels = local.alert_channels[each.value.project]

  conditions {
    display_name = each.value.title
    condition_matched_log {
      filter = each.value.filter
    }
  }

  alert_strategy {
    auto_close = "86400s"
    # Required where logs are matched.
    notification_rate_limit {
      period = "300s"
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = each.value.text
  }

  depends_on = [google_project_service.api]
}

# That nothing was backed up writes no log, and the absence of logs can be watched for 23.5 hours at most: so it is the daemon's own
# clock of its last proof that is watched.
#
# PromQL in Cloud Monitoring takes a metric by the name that the daemon gives it. Google's managed Prometheus keeps it as
# prometheus.googleapis.com/containarium_key_backup_verified_timestamp_seconds/gauge: a prefix, and its kind as a suffix; both are for
# filters and MQL, and in PromQL they are left out (a suffix only tells two kinds of one name apart, and the daemon declares these as
# gauges, once). tests/project/alerts.rs holds each name in this file against what a running daemon says.
#
# 0 means never: then the key's own age counts, as in packaging/alerts.yml, or a new deployment would be alarmed before its first month is
# over. The least of several, not the greatest: where two deployments report to one project, one that proves its key must not speak for
# one that does not.
resource "google_monitoring_alert_policy" "backup_age" {
  for_each = try(var.alerts.backup_age, false) ? toset([var.project_id]) : []

  project               = each.key
  display_name          = "${var.name}: no copy of the master key was read back for 35 days"
  combiner              = "OR"
  severity              = "ERROR"
  notification_channels = local.alert_channels[each.key]

  conditions {
    display_name = "the daemon's metric is old, or missing"
    condition_prometheus_query_language {
      query               = "(time() - min(containarium_key_backup_verified_timestamp_seconds > 0 or containarium_master_key_created_timestamp_seconds)) > 35 * 86400 or absent(containarium_key_backup_verified_timestamp_seconds)"
      duration            = "3600s"
      evaluation_interval = "300s"
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "A backup that nobody has read back is a hope. Read one back, or find out why the daemon's metrics do not arrive."
  }

  depends_on = [google_project_service.api]
}
