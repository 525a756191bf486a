# As minimal, and the master key on the daemon's disk is wrapped by a Cloud KMS key; reads are logged, and somebody is told.

terraform {
  required_version = ">= 1.9.0"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 7.33.0, < 9.0.0"
    }
  }
}

variable "project_id" {
  description = "The project of the daemon's machine, of the backup and of the KMS key."
  type        = string
}

variable "kms_location" {
  description = "Where the KMS key lies, near the daemon: it is asked at each start, and once a day. It cannot be moved later."
  type        = string
}

variable "security_group" {
  description = "The group that may restore, and wrap the master key, such as \"group:security@example.com\"."
  type        = string
}

variable "alert_email" {
  description = "Who is told when the key's copies are read, destroyed or opened to others."
  type        = string
}

variable "restore_until" {
  description = "During a restore: until when, such as 2027-01-31T18:00:00Z."
  type        = string
  default     = null
}

provider "google" {
  project = var.project_id
}

# The daemon's machine runs as this account.
resource "google_service_account" "daemon" {
  account_id   = "containarium-daemon"
  display_name = "containarium daemon"
}

module "containarium" {
  source = "../.."

  project_id      = var.project_id
  daemons         = { host = google_service_account.daemon.member }
  restore_members = [var.security_group]
  restore_until   = var.restore_until

  kms = {
    location  = var.kms_location
    operators = [var.security_group]
  }

  # Nobody else has set audit logs for Secret Manager or Cloud KMS in this project: it would be replaced.
  audit_logs = true
  alerts     = { emails = [var.alert_email] }
}

output "config" {
  description = "terraform output -raw config >> /etc/containarium/config.toml"
  value       = module.containarium.config
}

output "restore_accounts" {
  description = "For each copy the account to impersonate."
  value       = module.containarium.restore_accounts
}
