# What is in a machine, as `aws ec2 describe-instance-types` tells: GPUs, and which network cards can do EFA.
locals {
  machine_types = {
    "g5.48xlarge"      = { gpus = 8, efa_cards = range(0, 1) }
    "g6.xlarge"        = { gpus = 1, efa_cards = range(0) }
    "g6.12xlarge"      = { gpus = 4, efa_cards = range(0, 1) }
    "g6.48xlarge"      = { gpus = 8, efa_cards = range(0, 1) }
    "g6e.xlarge"       = { gpus = 1, efa_cards = range(0) }
    "g6e.12xlarge"     = { gpus = 4, efa_cards = range(0, 1) }
    "g6e.24xlarge"     = { gpus = 4, efa_cards = range(0, 2) }
    "g6e.48xlarge"     = { gpus = 8, efa_cards = range(0, 4) }
    "p4d.24xlarge"     = { gpus = 8, efa_cards = range(0, 4) }
    "p4de.24xlarge"    = { gpus = 8, efa_cards = range(0, 4) }
    "p5.4xlarge"       = { gpus = 1, efa_cards = range(0, 1) }
    "p5.48xlarge"      = { gpus = 8, efa_cards = range(0, 32) }
    "p5e.48xlarge"     = { gpus = 8, efa_cards = range(0, 32) }
    "p5en.48xlarge"    = { gpus = 8, efa_cards = range(0, 16) }
    "p6-b200.48xlarge" = { gpus = 8, efa_cards = range(0, 8) }
    "p6-b300.48xlarge" = { gpus = 8, efa_cards = range(1, 17) } # its first card is for ordinary traffic alone
  }

  # One card does both at once. Of several, the first has an ordinary interface with the machine's only IP address and
  # an EFA beside it; every other card has an EFA alone, which takes no address. (EC2 User Guide, "Maximize network
  # bandwidth on instances with multiple network cards".)
  plain_interface = [{ card = 0, device = 0, type = null }]
  efa_interfaces = { for type, machine in local.machine_types : type => length(machine.efa_cards) == 1 ? [{ card = 0, device = 0, type = "efa" }] : concat(
    [{ card = 0, device = 0, type = "interface" }],
    [for card in machine.efa_cards : { card = card, device = card == 0 ? 1 : 0, type = "efa-only" }],
  ) if length(machine.efa_cards) > 0 }

  interfaces = { for name, g in var.worker_groups : name => g.efa ? local.efa_interfaces[g.instance_types[0]] : local.plain_interface }
}
