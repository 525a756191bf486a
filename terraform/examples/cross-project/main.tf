# For more than one daemon, and for the day on which a whole project is gone: the daemons run in one project, the master key's copies
# lie in two others, and the KMS key in a fourth.

terraform {
  required_version = ">= 1.9.0"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 7.33.0, < 9.0.0"
    }
  }
}

variable "daemon_project_id" {
  description = "The project of the daemons' machines. Its administrators reach no copy of the key through it."
  type        = string
}

variable "backup_project_id" {
  description = "The project of the primary copy."
  type        = string
}

variable "offsite_project_id" {
  description = "The project of the second copy, best under another folder and another billing account."
  type        = string
}

variable "kms_project_id" {
  description = "The project of the KMS key, so that who administers the copies does not administer the key."
  type        = string
}

variable "restore_group" {
  description = "The group that may restore, such as \"group:break-glass@example.com\"."
  type        = string
}

variable "restore_until" {
  description = "During a restore: until when, such as 2027-01-31T18:00:00Z."
  type        = string
  default     = null
}

variable "kms_operators" {
  description = "The group that may wrap the master key, such as \"group:security@example.com\"."
  type        = string
}

variable "drill_member" {
  description = "Who runs the monthly drill, such as \"serviceAccount:drill@PROJECT.iam.gserviceaccount.com\"."
  type        = string
}

variable "alert_email" {
  description = "Who is told when the key's copies are read, destroyed or opened to others."
  type        = string
}

variable "lien" {
  description = "Put liens on the projects; whoever applies this needs resourcemanager.projects.updateLiens."
  type        = bool
  default     = true
}

provider "google" {}

# Each daemon's machine runs as an account of its own, so that one can be shut out and the other goes on.
resource "google_service_account" "daemon" {
  for_each = toset(["a", "b"])

  project      = var.daemon_project_id
  account_id   = "containarium-daemon-${each.key}"
  display_name = "containarium daemon ${each.key}"
}

module "containarium" {
  source = "../.."

  name       = "containarium-prod"
  project_id = var.backup_project_id
  daemons    = { for word, account in google_service_account.daemon : word => account.member }

  # Data that must stay in the EU: these regions instead of wherever Google chooses.
  replication = { replicas = { europe-west1 = {}, europe-west4 = {} } }
  offsite = {
    project_id  = var.offsite_project_id
    replication = { replicas = { europe-north1 = {} } }
  }

  kms = {
    project_id = var.kms_project_id
    location   = "europe-west1"
    operators  = [var.kms_operators]
  }

  restore_members = [var.restore_group]
  restore_until   = var.restore_until
  drill           = { members = [var.drill_member] }

  audit_logs = true
  alerts     = { emails = [var.alert_email] }
  lien       = var.lien
  labels     = { team = "security" }
}

output "config" {
  description = "terraform output -raw config >> /etc/containarium/config.toml"
  value       = module.containarium.config
}

output "restore_accounts" {
  description = "For each copy the account to impersonate."
  value       = module.containarium.restore_accounts
}

output "drill_account" {
  description = "The account to impersonate for the monthly drill."
  value       = module.containarium.drill_account
}
