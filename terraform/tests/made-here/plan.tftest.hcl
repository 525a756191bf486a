mock_provider "google" {
  mock_data "google_project" {
    defaults = { number = "123456789012" }
  }
}

run "accounts_and_keys_of_the_same_configuration_are_taken" {
  command = plan

  assert {
    condition     = length(output.secrets) == 2
    error_message = "both copies are planned"
  }
}
