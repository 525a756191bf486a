terraform {
  # 1.9: a variable's validation may look at other variables.
  required_version = ">= 1.9.0"

  required_providers {
    google = {
      source = "hashicorp/google"
      # 7.33: deletion_policy on all that must not be deleted. Below 9: a new major changes defaults, and is to be read first.
      version = ">= 7.33.0, < 9.0.0"
    }
  }
}
