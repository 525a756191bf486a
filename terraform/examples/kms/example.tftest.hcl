# The example plans as it stands, and renders the settings that the daemon reads: tests/terraform.rs gives it the same file.

mock_provider "google" {}

variables {
  project_id     = "acme-secrets"
  kms_location   = "europe-west1"
  security_group = "group:security@example.com"
  alert_email    = "security@example.com"
}

run "renders_the_daemons_settings" {
  command = plan

  assert {
    condition     = output.config == file("rendered.toml")
    error_message = "rendered.toml is not what this example renders"
  }
}
