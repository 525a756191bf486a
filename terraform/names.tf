# What everything is called: from variables alone, so that their rules can look at it. Written out and not read from what is made, so
# that it is known while variables are checked, and in a plan.

locals {
  secret_id = coalesce(var.secret_id, "${var.name}-secrets-master")

  # The daemon writes to every copy: the offsite one answers a deleted project.
  copies = merge(
    { primary = { project = var.project_id, secret_id = local.secret_id, replication = var.replication } },
    var.offsite == null ? {} : {
      offsite = {
        project     = var.offsite.project_id
        secret_id   = coalesce(var.offsite.secret_id, local.secret_id)
        replication = var.offsite.replication
      }
    },
  )
  projects = toset(concat(values(local.copies)[*].project, var.kms == null ? [] : [local.kms_project]))
  labels   = merge(var.labels, { app = "containarium", deployment = var.name })

  cmek_shape = {
    for which, location in { any = "[a-z0-9-]+", global = "global" } :
    which => "^projects/[a-z][a-z0-9-]{4,28}[a-z0-9]/locations/${location}/keyRings/[A-Za-z0-9_-]{1,63}/cryptoKeys/[A-Za-z0-9_-]{1,63}$"
  }
  # By location and not by the key's name, which is not known in a plan that makes the key; for the same reason no try() is here.
  cmek_keys = {
    for copy, at in local.copies : copy => merge(
      { for cmek in at.replication.cmek[*] : "global" => cmek.key },
      { for location, replica in at.replication.replicas : location => replica.cmek.key if replica.cmek != null },
    )
  }
  # Secret Manager's replicas lie in regions: no zones, multi-regions or "global".
  region = "^[a-z]+-[a-z]+[0-9]+$"

  # Who may be given a right. Everyone ("allUsers", principal://goog/…, a whole pool) is not among them.
  member      = "^(group|user|serviceAccount):[^@\\s]+@[^@\\s]+$|^principal://iam\\.googleapis\\.com/[^\\s]+$"
  mislabelled = "^(group|user):.*gserviceaccount\\.com"

  kms_project  = var.kms == null ? "" : coalesce(var.kms.project_id, var.project_id)
  kms_key_ring = var.kms == null ? "" : coalesce(var.kms.key_ring, var.name)
  # "" where there is none.
  wrap_key = var.kms == null ? "" : "projects/${local.kms_project}/locations/${var.kms.location}/keyRings/${local.kms_key_ring}/cryptoKeys/${var.kms.key}"
}
