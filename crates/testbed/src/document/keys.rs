//! Every key of the document: what is read, what errors list, what the schema says.

/// The keys of one mapping.
pub(super) type Keys = &'static [Key];

/// One key.
#[derive(Debug)]
pub(super) struct Key {
    pub name: &'static str,
    /// Other spellings, those of Enos and EnOSlib.
    pub aliases: &'static [&'static str],
    /// The value's shape: a name of the schema's definitions, see `schema.rs`.
    pub shape: &'static str,
    pub help: &'static str,
}

const fn key(name: &'static str, shape: &'static str, help: &'static str) -> Key {
    Key { name, aliases: &[], shape, help }
}

impl Key {
    const fn or(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }
}

/// The document itself.
pub(super) const TOP: Keys = &[
    key(
        "experiment",
        "label",
        "Names the experiment; by default the file's name, or the folder's for a file called reservation",
    ),
    key(
        "provider",
        "provider",
        "The provider: its name, or a mapping with type and the provider's own variables",
    ),
    key("providers", "providers", "Several providers, all of which or none are used"),
    key("user", "text", "The account to log in as; by default the image's"),
    key("key", "text", "The private key's file; by default a pair is made for the experiment"),
    key("image", "text", "The image of machines that name none"),
    key("images", "images", "Names for images, each with what it is at each provider"),
    key("flavours", "flavours", "Names for sizes of machines").or(&["flavors"]),
    key("ports", "ports", "Ports to be reachable on every machine beside that of SSH"),
    key("shortage", "shortage", "What happens when fewer machines are to be had than wanted"),
    key("role_distribution", "distribution", "The same as shortage, in the words of Enos"),
    key("resources", "resources", "Machines: kind, role, count; or role, hosts"),
    key("topology", "topology", "Machines: group, kind, role, count; or group, role, hosts"),
    key("machines", "machines", "Machines, one entry for each group of equal ones"),
    key("networks", "networks", "Networks, or addresses of networks that are there"),
    key("network", "network", "The same as networks, for a single one"),
    key("network_constraints", "constraints", "Delay, rate and loss between groups"),
    key("hooks", "hooks", "What is run around the provisioning"),
];

/// An entry of `machines`.
pub(super) const MACHINE: Keys = &[
    key("name", "label", "Its name; with a number above 1 each has -1, -2, … behind it"),
    key("roles", "words", "Its roles").or(&["role"]),
    key("number", "count", "How many of them").or(&["count", "nodes"]),
    key("min", "count", "The fewest of them to go on with"),
    key("type", "word", "What the provider sells: an instance type, a cluster, a flavour")
        .or(&["kind", "cluster"]),
    key("flavour", "word", "A flavour of the document, or one of the common ones").or(&["flavor"]),
    key("flavour_desc", "size", "A size, in the words of EnOSlib"),
    key("vcpus", "vcpus", "Virtual processors").or(&["core"]),
    key("memory", "memory", "Memory: MiB, or a text such as 4GiB").or(&["mem"]),
    key("disk", "disk", "Root disk: GiB, or a text such as 20GiB"),
    key("gpus", "gpus", "GPUs"),
    key("image", "text", "Its image"),
    key("user", "text", "The account to log in as").or(&["username"]),
    key("networks", "words", "Names or roles of its networks, in the order of its interfaces"),
    key("primary_network", "word", "Its first network, in the words of EnOSlib"),
    key("secondary_networks", "words", "Its other networks, in the words of EnOSlib"),
    key("address", "text", "A fixed address; for provider static the host to connect to"),
    key("ports", "ports", "Ports to be reachable beside that of SSH"),
    key("provider", "word", "The provider, where there are several"),
    key("alias", "text", "Provider static: the host's name in inventories"),
    key("port", "port", "Provider static: the port of SSH"),
    key("key", "text", "Provider static: the private key's file").or(&["keyfile"]),
    key("extra", "variables", "Variables for the inventory").or(&["vars"]),
];

/// What may stand in place of a count.
pub(super) const COUNT: Keys = &[
    key("count", "count", "How many").or(&["number"]),
    key("min", "count", "The fewest to go on with"),
    key("vcpus", "vcpus", "Virtual processors").or(&["core"]),
    key("memory", "memory", "Memory: MiB, or a text such as 4GiB").or(&["mem"]),
    key("disk", "disk", "Root disk: GiB, or a text such as 20GiB"),
    key("gpus", "gpus", "GPUs"),
    key("image", "text", "The image"),
    key("user", "text", "The account to log in as").or(&["username"]),
    key("networks", "words", "Names or roles of the networks, in the order of interfaces"),
    key("ports", "ports", "Ports to be reachable beside that of SSH"),
    key("provider", "word", "The provider, where there are several"),
    key("extra", "variables", "Variables for the inventory").or(&["vars"]),
];

/// A host that exists already.
pub(super) const HOST: Keys = &[
    key("address", "text", "What SSH connects to"),
    key("alias", "text", "Its name in inventories; by default the address").or(&["name"]),
    key("user", "text", "The account to log in as").or(&["username"]),
    key("key", "text", "The private key's file").or(&["keyfile"]),
    key("port", "port", "The port of SSH"),
    key("provider", "word", "The provider, where there are several"),
    key("extra", "variables", "Variables for the inventory").or(&["vars"]),
];

/// A flavour.
pub(super) const FLAVOUR: Keys = &[
    key("type", "perprovider", "What it is at the provider, or a mapping from provider to that"),
    key("vcpus", "vcpus", "Virtual processors").or(&["core"]),
    key("memory", "memory", "Memory: MiB, or a text such as 4GiB").or(&["mem"]),
    key("disk", "disk", "Root disk: GiB, or a text such as 20GiB"),
    key("gpus", "gpus", "GPUs"),
    key("image", "text", "The image"),
];

/// A size in the words of EnOSlib.
pub(super) const SIZE: Keys = &[
    key("vcpus", "vcpus", "Virtual processors").or(&["core"]),
    key("memory", "memory", "Memory: MiB, or a text such as 4GiB").or(&["mem"]),
    key("disk", "disk", "Root disk: GiB, or a text such as 20GiB"),
    key("gpus", "gpus", "GPUs"),
];

/// An entry of `networks`.
pub(super) const NETWORK: Keys = &[
    key("name", "word", "Its name").or(&["id"]),
    key("roles", "words", "Its roles").or(&["role"]),
    key("type", "word", "What it is at the provider: a subnet's id, a kind of vlan").or(&["kind"]),
    key("cidr", "cidr", "Its addresses, such as 192.0.2.0/24"),
    key("start", "ip", "First free address"),
    key("end", "ip", "Last free address; it is free, too"),
    key("extra_ips", "ips", "Single free addresses, used before the range"),
    key("gateway", "ip", "The gateway"),
    key("dns", "ips", "Name servers"),
    key("provider", "word", "The provider, where there are several"),
];

/// `hooks`.
pub(super) const HOOKS: Keys = &[
    key("before_preinstall", "hooklist", "Runs before the provisioning"),
    key("preinstall", "hooklist", "The provisioning"),
    key("after_preinstall", "hooklist", "Runs after the provisioning"),
    key("destroy", "hooklist", "Runs before machines are given back"),
];

/// One hook.
pub(super) const HOOK: Keys = &[
    key("local", "text", "A command of the shell on this machine"),
    key("ssh", "text", "A command over SSH on each machine").or(&["run"]),
    key("roles", "words", "The machines of an ssh command, by role; by default all").or(&["role"]),
    key("ansible", "text", "A playbook's file").or(&["playbook"]),
    key("args", "texts", "More arguments of ansible-playbook"),
    key("ignore_errors", "bool", "A failure is told and goes on"),
];

/// `network_constraints`.
pub(super) const CONSTRAINTS: Keys = &[
    key("enable", "bool", "false takes the emulation away; by default true"),
    key("default_delay", "text", "Delay between any two groups, such as 25ms"),
    key("default_rate", "text", "Rate between any two groups, such as 100mbit"),
    key("default_loss", "percent", "Loss between any two groups, such as 0.1%"),
    key("except", "words", "Groups or roles that the default leaves alone"),
    key("constraints", "pairs", "What holds between two groups instead of the default"),
];

/// An entry of `constraints`.
pub(super) const PAIR: Keys = &[
    key("src", "word", "The group or role that sends; a range is possible"),
    key("dst", "word", "The group or role that receives; a range is possible"),
    key("delay", "text", "Delay, such as 10ms"),
    key("rate", "text", "Rate, such as 1gbit"),
    key("loss", "percent", "Loss, such as 1%"),
    key("symmetric", "bool", "It holds in the other direction, too; by default false").or(&["symetric"]),
];

/// `resources` with explicit machines.
pub(super) const EXPLICIT: Keys = &[
    key("machines", "machines", "Machines, one entry for each group of equal ones"),
    key("networks", "networks", "Networks, or addresses of networks that are there"),
];
