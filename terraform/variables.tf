variable "project_id" {
  description = "The project of the primary copy of the master key; the daemon may run in another."
  type        = string
  nullable    = false

  validation {
    # By id, not by number: names are compared as text below, and a number would be a second name for the same thing.
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project_id))
    error_message = "project_id must be a project's id (6 to 30 of a-z, 0-9 and -), not its number and not domain-scoped."
  }
}

variable "name" {
  description = "The deployment's name. Service accounts, custom roles, the key ring and (unless secret_id says otherwise) the secret are named after it."
  type        = string
  default     = "containarium"
  nullable    = false

  validation {
    # A service account's id has at most 30 characters, and "-restore" is appended.
    condition     = can(regex("^[a-z][a-z0-9-]{0,18}[a-z0-9]$", var.name))
    error_message = "name must be 2 to 20 of a-z, 0-9 and -, begin with a letter and not end with -."
  }
}

variable "secret_id" {
  description = "The secret that holds the master key's copies. Default: NAME-secrets-master."
  type        = string
  default     = null

  validation {
    condition     = var.secret_id == null || can(regex("^[A-Za-z0-9_-]{1,255}$", var.secret_id))
    error_message = "secret_id must be 1 to 255 of A-Z, a-z, 0-9, _ and -, without its project."
  }
}

variable "daemons" {
  description = "Who runs the daemon: a word of yours for each host => its identity (\"serviceAccount:…\" or \"principal://…\"). A map, since its keys are known before an account exists."
  type        = map(string)
  nullable    = false

  validation {
    condition     = length(var.daemons) > 0
    error_message = "daemons must name at least one identity: without it nobody can push a backup."
  }
  validation {
    condition     = alltrue([for member in values(var.daemons) : can(regex("^(serviceAccount:[^@\\s]+@[^@\\s]+|principal://iam\\.googleapis\\.com/[^\\s]+)$", member))])
    error_message = "daemons must be \"serviceAccount:EMAIL\" or \"principal://iam.googleapis.com/…\": a group, a user or everyone is no daemon, and who joins a group later would get its rights."
  }
  validation {
    condition     = alltrue([for member in values(var.daemons) : !can(regex("(-compute@developer|@appspot|@cloudservices)\\.gserviceaccount\\.com|^serviceaccount:service-[0-9]+@", lower(member)))])
    error_message = "daemons must not name a project's default service account or a service agent: every machine of the project has it, or Google's own services act as it. Give the daemon's host its own."
  }
  validation {
    condition     = length(setintersection([for member in values(var.daemons) : lower(member)], [for member in try(values(var.drill.members), []) : lower(member)])) == 0
    error_message = "daemons must not be among drill.members: through the drill account a daemon could read the key's copies."
  }
  validation {
    condition     = length(setintersection([for member in values(var.daemons) : lower(member)], [for member in try(concat(values(var.kms.operators), values(var.kms.encrypters)), []) : lower(member)])) == 0
    error_message = "daemons must not be among kms.operators or kms.encrypters: a daemon only unwraps."
  }
  validation {
    condition     = alltrue([for member in values(var.daemons) : !can(regex("^serviceaccount:${var.name}-(restore|drill)@", lower(member)))])
    error_message = "daemons must not name the restore or the drill account: those read the key's copies."
  }
}

variable "replication" {
  description = "Where the primary copy lies. No replicas: Google chooses (automatic). Else location => options. cmek.key encrypts the copy with a key of yours, which must lie in \"global\" (automatic) or in the replica's own location; an object, so that a plan knows of a key that the same configuration makes."
  type = object({
    cmek     = optional(object({ key = string }))
    replicas = optional(map(object({ cmek = optional(object({ key = string })) })), {})
  })
  default  = {}
  nullable = false

  validation {
    condition     = var.replication.cmek == null || length(var.replication.replicas) == 0
    error_message = "replication.cmek is for automatic replication: with replicas, give each its own cmek."
  }
  validation {
    condition     = alltrue([for location in keys(var.replication.replicas) : can(regex(local.region, location))])
    error_message = "replication.replicas must be named by a region of Secret Manager, such as europe-west1."
  }
  validation {
    condition     = var.replication.cmek == null || can(regex(local.cmek_shape["global"], var.replication.cmek.key))
    error_message = "replication.cmek.key must be projects/PROJECT_ID/locations/global/keyRings/RING/cryptoKeys/KEY, without a version: automatic replication takes global keys only."
  }
  validation {
    condition = alltrue([for location, replica in var.replication.replicas : replica.cmek == null || (
      can(regex(local.cmek_shape["any"], replica.cmek.key)) && try(split("/", replica.cmek.key)[3], "") == location
    )])
    error_message = "replication.replicas: a cmek.key must be projects/PROJECT_ID/locations/LOCATION/keyRings/RING/cryptoKeys/KEY, without a version, with the replica's own location."
  }
  validation {
    condition     = length(distinct([for replica in values(var.replication.replicas) : replica.cmek == null])) <= 1
    error_message = "replication.replicas: give every replica a cmek, or none."
  }
  validation {
    condition     = !contains(concat([for cmek in var.replication.cmek[*] : cmek.key], [for replica in values(var.replication.replicas) : replica.cmek.key if replica.cmek != null]), local.wrap_key)
    error_message = "replication: a cmek.key must not be the key that wraps the master key: one loss would take the key file and its backup."
  }
}

variable "offsite" {
  description = "A second copy in a project of its own, which outlives the first. The daemon writes to both."
  type = object({
    project_id = string
    secret_id  = optional(string)
    replication = optional(object({
      cmek     = optional(object({ key = string }))
      replicas = optional(map(object({ cmek = optional(object({ key = string })) })), {})
    }), {})
  })
  default = null

  validation {
    condition     = var.offsite == null || can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.offsite.project_id))
    error_message = "offsite.project_id must be a project's id (6 to 30 of a-z, 0-9 and -), not its number and not domain-scoped."
  }
  validation {
    condition     = var.offsite == null || try(var.offsite.project_id, "") != var.project_id
    error_message = "offsite.project_id must be another project than project_id: the offsite copy is there for the day on which that one is deleted."
  }
  validation {
    condition     = !contains([for cmek in concat(var.replication.cmek[*], [for replica in values(var.replication.replicas) : replica.cmek if replica.cmek != null]) : try(split("/", cmek.key)[1], "")], try(var.offsite.project_id, ""))
    error_message = "offsite.project_id must not be the project of a cmek.key of the primary copy: one deleted project would take both copies."
  }
  validation {
    condition     = var.offsite == null || try(var.offsite.secret_id, null) == null || can(regex("^[A-Za-z0-9_-]{1,255}$", var.offsite.secret_id))
    error_message = "offsite.secret_id must be 1 to 255 of A-Z, a-z, 0-9, _ and -, without its project."
  }
  validation {
    condition     = try(var.offsite.replication.cmek, null) == null || try(length(var.offsite.replication.replicas), 0) == 0
    error_message = "offsite.replication.cmek is for automatic replication: with replicas, give each its own cmek."
  }
  validation {
    condition     = alltrue([for location in try(keys(var.offsite.replication.replicas), []) : can(regex(local.region, location))])
    error_message = "offsite.replication.replicas must be named by a region of Secret Manager, such as europe-west1."
  }
  validation {
    condition     = try(var.offsite.replication.cmek, null) == null || can(regex(local.cmek_shape["global"], var.offsite.replication.cmek.key))
    error_message = "offsite.replication.cmek.key must be projects/PROJECT_ID/locations/global/keyRings/RING/cryptoKeys/KEY, without a version: automatic replication takes global keys only."
  }
  validation {
    condition = alltrue([for location, replica in try(var.offsite.replication.replicas, {}) : replica.cmek == null || (
      can(regex(local.cmek_shape["any"], replica.cmek.key)) && try(split("/", replica.cmek.key)[3], "") == location
    )])
    error_message = "offsite.replication.replicas: a cmek.key must be projects/PROJECT_ID/locations/LOCATION/keyRings/RING/cryptoKeys/KEY, without a version, with the replica's own location."
  }
  validation {
    condition     = length(distinct([for replica in values(try(var.offsite.replication.replicas, {})) : replica.cmek == null])) <= 1
    error_message = "offsite.replication.replicas: give every replica a cmek, or none."
  }
  validation {
    # By project, since a project is what one order deletes: the offsite copy is there for that day.
    condition = length(setintersection(
      [for cmek in concat(try(var.offsite.replication.cmek, null)[*], [for replica in values(try(var.offsite.replication.replicas, {})) : replica.cmek if replica.cmek != null]) : try(split("/", cmek.key)[1], "")],
      concat(
        [var.project_id], var.kms == null ? [] : [local.kms_project],
        [for cmek in concat(var.replication.cmek[*], [for replica in values(var.replication.replicas) : replica.cmek if replica.cmek != null]) : try(split("/", cmek.key)[1], "")],
      ),
    )) == 0
    error_message = "offsite.replication: a cmek.key must lie in a project that has neither the primary copy, nor a key of that, nor the key that wraps the master key: one loss would take both."
  }
}

variable "kms" {
  description = "A Cloud KMS key that wraps the master key at rest. operators wrap and rewrap (encrypt and decrypt); encrypters only wrap: maps, like daemons. location cannot be changed later."
  type = object({
    location         = string
    project_id       = optional(string)
    key_ring         = optional(string)
    key              = optional(string, "master")
    protection_level = optional(string, "HSM")
    operators        = optional(map(string), {})
    encrypters       = optional(map(string), {})
  })
  default = null

  validation {
    condition     = var.kms == null || can(regex("^[a-z][a-z0-9-]*[a-z0-9]$", var.kms.location))
    error_message = "kms.location must be a location of Cloud KMS, such as \"europe-west1\"."
  }
  validation {
    condition     = var.kms == null || try(var.kms.project_id, null) == null || can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.kms.project_id))
    error_message = "kms.project_id must be a project's id (6 to 30 of a-z, 0-9 and -), not its number and not domain-scoped."
  }
  validation {
    condition     = var.kms == null || alltrue([for name in [try(coalesce(var.kms.key_ring, var.name), ""), try(var.kms.key, "")] : can(regex("^[A-Za-z0-9_-]{1,63}$", name))])
    error_message = "kms.key_ring and kms.key must be 1 to 63 of A-Z, a-z, 0-9, _ and -, without their project."
  }
  validation {
    condition     = var.kms == null || contains(["HSM", "SOFTWARE"], try(var.kms.protection_level, ""))
    error_message = "kms.protection_level must be HSM or SOFTWARE."
  }
  validation {
    condition     = alltrue([for member in try(concat(values(var.kms.operators), values(var.kms.encrypters)), []) : can(regex("${local.member}|^principalSet://iam\\.googleapis\\.com/[^\\s]+/(group|attribute)[^\\s*]+$", member)) && !can(regex(local.mislabelled, lower(member)))])
    error_message = "kms.operators and kms.encrypters must be \"group:…\", \"user:…\", \"serviceAccount:…\", \"principal://iam.googleapis.com/…\" or a principalSet of a group or an attribute; an account of Google's is a serviceAccount, not a user or a group."
  }
}

variable "restore_members" {
  description = "Who may break the glass: groups or people that may impersonate the restore accounts. Empty: no such account."
  type        = set(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for member in var.restore_members : can(regex("^(group|user):[^@\\s]+@[^@\\s]+$", member)) && !can(regex(local.mislabelled, lower(member)))])
    error_message = "restore_members must be \"group:EMAIL\" or \"user:EMAIL\": people break the glass, not machines or their accounts, and never everyone."
  }
}

variable "restore_until" {
  description = "Opens the restore accounts' access to payloads until this time (RFC 3339, UTC, at most 7 days ahead), written out: timestamp() would move it with each apply. Null: they can read nothing."
  type        = string
  default     = null

  validation {
    condition     = var.restore_until == null || can(regex("^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$", var.restore_until)) && can(timeadd(var.restore_until, "0s"))
    error_message = "restore_until must be a time such as 2027-01-31T18:00:00Z."
  }
  validation {
    # A time that has passed is fine: the window has closed by itself, and plans must go on working.
    condition     = try(timecmp(var.restore_until, timeadd(plantimestamp(), "168h")) <= 0, true)
    error_message = "restore_until must be at most 7 days ahead: a window that stays open is a standing right."
  }
  validation {
    condition     = var.restore_until == null || length(var.restore_members) > 0
    error_message = "restore_until needs restore_members: there is no restore account to open."
  }
}

variable "drill" {
  description = "An account that may always read the offsite copy, and only that one, for the monthly drill; members (a map, like daemons) may impersonate it."
  type        = object({ members = map(string) })
  default     = null

  validation {
    condition     = var.drill == null || var.offsite != null
    error_message = "drill needs offsite: a standing right to read is given on the offsite copy only."
  }
  validation {
    condition     = (var.drill == null || try(length(var.drill.members) > 0, false)) && alltrue([for member in try(values(var.drill.members), []) : can(regex(local.member, member)) && !can(regex(local.mislabelled, lower(member)))])
    error_message = "drill.members must be one or more of \"group:…\", \"user:…\", \"serviceAccount:…\" and \"principal://iam.googleapis.com/…\"; an account of Google's is a serviceAccount, not a user or a group."
  }
}

variable "audit_logs" {
  description = "Log who accesses payloads and who uses the KMS key (DATA_READ). Authoritative for these two services: it replaces what a project has set for them."
  type        = bool
  default     = false
  nullable    = false
}

variable "alerts" {
  description = "Alerts on payload access (needs DATA_READ logs: audit_logs, or the organization's), on disabling, destroying and deleting, and on changed rights. emails get a channel in each project; channels are existing ones by full name, each used for the policies of its own project. backup_age: also when the daemon's metric, in Google's managed Prometheus, says that no copy of the key was read back for 35 days."
  type = object({
    emails     = optional(set(string), [])
    channels   = optional(set(string), [])
    backup_age = optional(bool, false)
  })
  default = null

  validation {
    condition     = var.alerts == null || alltrue([for email in try(var.alerts.emails, []) : can(regex("^[^@\\s]+@[^@\\s]+$", email))])
    error_message = "alerts.emails must be addresses."
  }
  validation {
    condition     = var.alerts == null || alltrue([for channel in try(var.alerts.channels, []) : can(regex("^projects/[^/]+/notificationChannels/[^/]+$", channel)) && contains(local.projects, try(split("/", channel)[1], ""))])
    error_message = "alerts.channels must be projects/PROJECT_ID/notificationChannels/ID, in one of this deployment's projects: a policy can use its own project's channels only."
  }
  validation {
    condition     = var.alerts == null || try(length(var.alerts.emails) > 0, false) || alltrue([for project in local.projects : anytrue([for channel in try(var.alerts.channels, []) : startswith(channel, "projects/${project}/")])])
    error_message = "alerts must reach somebody in every project: give emails, or a channel of each project."
  }
}

variable "lien" {
  description = "Put a lien on each project, so that it cannot be deleted before the lien is removed. Needs resourcemanager.projects.updateLiens."
  type        = bool
  default     = false
  nullable    = false
}

variable "deletion_protection" {
  description = "Whether a plan that would delete a secret, the KMS key or a lien fails. Turning it off is an apply of its own, before the one that deletes."
  type        = bool
  default     = true
  nullable    = false
}

variable "enable_apis" {
  description = "Enable the Google APIs that are needed. They stay enabled when this is destroyed."
  type        = bool
  default     = true
  nullable    = false
}

variable "labels" {
  description = "Labels for the secrets and the KMS key, beside app and deployment."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition     = alltrue([for key, value in var.labels : can(regex("^[a-z][a-z0-9_-]{0,62}$", key)) && can(regex("^[a-z0-9_-]{0,63}$", value))])
    error_message = "labels must have keys of 1 to 63 and values of up to 63 of a-z, 0-9, _ and -; a key begins with a letter."
  }
  validation {
    condition     = length(setintersection(keys(var.labels), ["app", "deployment"])) == 0
    error_message = "labels must not have app or deployment: the module sets them."
  }
}

variable "push_on_first_start" {
  description = "Rendered into the daemon's configuration: push a backup of the key that the first start makes."
  type        = bool
  default     = true
  nullable    = false
}
