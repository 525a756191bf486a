# One copy of the master key in one project, and a group that can restore it.

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
  description = "The project of the daemon's machine and of the backup."
  type        = string
}

variable "restore_group" {
  description = "The group that may restore, such as \"group:security@example.com\"."
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
  restore_members = [var.restore_group]
  restore_until   = var.restore_until
}

output "config" {
  description = "terraform output -raw config >> /etc/containarium/config.toml"
  value       = module.containarium.config
}

output "restore_accounts" {
  description = "For each copy the account to impersonate."
  value       = module.containarium.restore_accounts
}
