# The example plans as it stands, and renders the settings that the daemon reads: tests/terraform.rs gives it the same file.

mock_provider "google" {}

variables {
  daemon_project_id  = "acme-daemons"
  backup_project_id  = "acme-backup"
  offsite_project_id = "acme-offsite"
  kms_project_id     = "acme-kms"
  restore_group      = "group:break-glass@example.com"
  kms_operators      = "group:security@example.com"
  drill_member       = "serviceAccount:drill@acme-ops.iam.gserviceaccount.com"
  alert_email        = "security@example.com"
}

run "renders_the_daemons_settings" {
  command = plan

  assert {
    condition     = output.config == file("rendered.toml")
    error_message = "rendered.toml is not what this example renders"
  }
}
