//! The options and what they mean once parsed.

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use cloud_providers::{Error, ErrorKind, OptionKind, OptionSpec, Result, Role, Values};
use ipnet::Ipv4Net;

/// The longest name of a network interface.
const IFNAME_MAX: usize = 15;

/// Every option of the provider.
pub const OPTIONS: &[OptionSpec] = &[
    OptionSpec::text("data-dir", "Folder of the instances' records and console logs")
        .env("LOCAL_DATA_DIR")
        .default("/var/lib/peerpod/local"),
    OptionSpec::text("bridge", "Bridge that joins the instances, made on demand")
        .env("LOCAL_BRIDGE")
        .default("ppbr0"),
    OptionSpec::text("subnet", "IPv4 subnet of the instances; its first address is the bridge's")
        .env("LOCAL_SUBNET")
        .default("10.88.0.0/16"),
    OptionSpec::text(
        "root",
        "Folder that instances see as their root, read-only; empty means the running system",
    )
    .env("LOCAL_ROOT"),
    OptionSpec::text(
        "guest-dir",
        "Folder with podvm-init, process-user-data, agent-protocol-forwarder and kata-agent",
    )
    .env("LOCAL_GUEST_DIR")
    .default("/usr/libexec/peerpod"),
    OptionSpec::text("init", "First program of an instance; empty means podvm-init of guest-dir")
        .env("LOCAL_INIT"),
    OptionSpec::new("init-args", OptionKind::List, "More arguments for the first program")
        .env("LOCAL_INIT_ARGS"),
    OptionSpec::text("agent", "Agent that the first program starts; empty means kata-agent of guest-dir")
        .env("LOCAL_AGENT"),
    OptionSpec::text(
        "machine-init",
        "First program of plain machines, which one logs in to; empty means that there are none",
    )
    .env("LOCAL_MACHINE_INIT"),
    OptionSpec::new(
        "machine-args",
        OptionKind::List,
        "Arguments for the first program of plain machines, before those of the provider",
    )
    .env("LOCAL_MACHINE_ARGS"),
    OptionSpec::int(
        "reserved-addresses",
        0,
        1 << 24,
        "Addresses at the end of the subnet that no instance gets unless it asks for one by itself; none when empty",
    )
    .env("LOCAL_RESERVED_ADDRESSES"),
    OptionSpec::int("tmpfs-size-mib", 16, 1 << 20, "Most MiB of memory that an instance's files may take")
        .env("LOCAL_TMPFS_SIZE_MIB")
        .default("1024"),
    OptionSpec::new(
        "boot-grace",
        OptionKind::Duration,
        "A first program that ends within this time makes the creation fail",
    )
    .env("LOCAL_BOOT_GRACE")
    .default("10ms"),
];

/// Parsed options.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) data_dir: PathBuf,
    pub(crate) bridge: String,
    pub(crate) subnet: Ipv4Net,
    /// `None` is the running system.
    pub(crate) root: Option<PathBuf>,
    pub(crate) guest_dir: PathBuf,
    pub(crate) init: Option<PathBuf>,
    pub(crate) init_args: Vec<String>,
    pub(crate) agent: Option<PathBuf>,
    pub(crate) machine_init: Option<PathBuf>,
    pub(crate) machine_args: Vec<String>,
    pub(crate) reserved_addresses: u32,
    pub(crate) tmpfs_size_mib: u64,
    pub(crate) boot_grace: Duration,
}

impl Config {
    /// Reads the parsed values and adds what is wrong with them to `problems`.
    pub(crate) fn read(values: &Values, problems: &mut Vec<String>) -> Self {
        let mut path = |flag: &str, names: &str| {
            let path = values.optional(flag).map(PathBuf::from);
            if let Some(path) = path.as_ref().filter(|p| !p.is_absolute()) {
                problems
                    .push(format!("{names} is {:?}, expected an absolute path", path.display().to_string()));
            }
            path
        };
        let data_dir = path("data-dir", "-data-dir or LOCAL_DATA_DIR").unwrap_or_default();
        let root = path("root", "-root or LOCAL_ROOT").filter(|p| p != Path::new("/"));
        let guest_dir = path("guest-dir", "-guest-dir or LOCAL_GUEST_DIR").unwrap_or_default();
        let init = path("init", "-init or LOCAL_INIT");
        let agent = path("agent", "-agent or LOCAL_AGENT");
        let machine_init = path("machine-init", "-machine-init or LOCAL_MACHINE_INIT");

        let bridge = values.text("bridge");
        let name_ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if !(1..=IFNAME_MAX).contains(&bridge.len())
            || !bridge.chars().all(name_ok)
            || matches!(bridge.as_str(), "." | "..")
        {
            problems.push(format!(
                "-bridge or LOCAL_BRIDGE is {bridge:?}, expected 1 to {IFNAME_MAX} letters, digits, dashes, dots or underscores"
            ));
        }
        let text = values.text("subnet");
        let subnet = text.parse::<Ipv4Net>().ok().filter(|net| (8..=29).contains(&net.prefix_len()));
        if subnet.is_none() {
            problems.push(format!(
                "-subnet or LOCAL_SUBNET is {text:?}, expected an IPv4 subnet with a prefix from 8 to 29, such as 10.88.0.0/16"
            ));
        }
        let subnet = subnet.unwrap_or_default().trunc();
        let reserved_addresses = u32::try_from(values.int("reserved-addresses")).unwrap_or_default();
        // Network, broadcast and bridge have one each, and an instance needs one.
        let most = (1u32 << (32 - u32::from(subnet.prefix_len().max(1)))).saturating_sub(4);
        if reserved_addresses > most && problems.is_empty() {
            problems.push(format!(
                "-reserved-addresses or LOCAL_RESERVED_ADDRESSES is {reserved_addresses}, expected at most {most} of the \
                 subnet {subnet}, so that an instance can have one"
            ));
        }
        Self {
            data_dir,
            bridge,
            subnet,
            root,
            guest_dir,
            init,
            init_args: values.list("init-args"),
            agent,
            machine_init,
            machine_args: values.list("machine-args"),
            reserved_addresses,
            tmpfs_size_mib: u64::try_from(values.int("tmpfs-size-mib")).unwrap_or_default(),
            boot_grace: values.duration("boot-grace"),
        }
    }

    /// Returns the bridge's address: the first one of the subnet.
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.subnet.network()) + 1)
    }

    /// Whether nothing was said about guests, and none of their programs is at its default place.
    pub(crate) fn guest_programs_are_default(&self) -> bool {
        self.init.is_none() && self.agent.is_none() && !self.guest_dir.is_dir()
    }

    /// Returns the last address that is given to an instance which asks for none.
    pub(crate) fn last_address(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.subnet.broadcast()).saturating_sub(1 + self.reserved_addresses))
    }

    /// Finds the programs of an instance of `role` and names everything that is missing.
    pub(crate) fn programs(&self, role: Role) -> Result<Programs> {
        match role {
            Role::Plain => self.machine_program(),
            _ => self.guest_programs(),
        }
    }

    /// Finds the first program of a plain machine. It needs nothing of a guest.
    fn machine_program(&self) -> Result<Programs> {
        let missing = |why: &str| Error::config(why).with("set", "LOCAL_MACHINE_INIT");
        let path = self.machine_init.as_deref();
        let path = path.ok_or_else(|| missing("plain machines have no first program"))?;
        let init = executable(path).map_err(|why| missing(&format!("{} {why}", path.display())))?;
        match &self.root {
            Some(root) if !root.is_dir() => {
                Err(Error::config(format!("{} is no folder", root.display())).with("set", "LOCAL_ROOT"))
            }
            _ => Ok(Programs { guest_dir: None, init, agent: None }),
        }
    }

    /// Finds the programs of a guest.
    ///
    /// The agent is demanded only where our own init runs: another first program may have no use for one.
    fn guest_programs(&self) -> Result<Programs> {
        let mut problems = Vec::new();
        let mut find = |path: PathBuf, key: &str| match executable(&path) {
            Ok(found) => Some(found),
            Err(why) => {
                problems.push(format!("{} {why}: set {key}", path.display()));
                None
            }
        };
        let ours = self.init.is_none();
        let init = self.init.clone().unwrap_or_else(|| self.guest_dir.join("podvm-init"));
        let init = find(init, if ours { "LOCAL_GUEST_DIR" } else { "LOCAL_INIT" });
        let agent = match &self.agent {
            Some(path) => find(path.clone(), "LOCAL_AGENT"),
            None if ours => find(self.guest_dir.join("kata-agent"), "LOCAL_AGENT"),
            None => None,
        };
        if ours {
            for name in ["process-user-data", "agent-protocol-forwarder"] {
                find(self.guest_dir.join(name), "LOCAL_GUEST_DIR");
            }
        }
        let guest_dir = fs::canonicalize(&self.guest_dir).ok().filter(|p| p.is_dir());
        if let Some(root) = &self.root
            && !root.is_dir()
        {
            problems.push(format!("{} is no folder: set LOCAL_ROOT", root.display()));
        }
        match (Error::all(ErrorKind::Config, problems), init) {
            (None, Some(init)) => Ok(Programs { guest_dir, init, agent }),
            (Some(error), _) => Err(error),
            (None, None) => Err(Error::internal("the first program was not looked for")),
        }
    }
}

/// The guest's programs on this host, without symbolic links in their paths.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) guest_dir: Option<PathBuf>,
    pub(crate) init: PathBuf,
    pub(crate) agent: Option<PathBuf>,
}

fn executable(path: &Path) -> Result<PathBuf, &'static str> {
    let found = fs::canonicalize(path).map_err(|_| "does not exist")?;
    let meta = fs::metadata(&found).map_err(|_| "cannot be read")?;
    if !meta.is_file() {
        return Err("is no file");
    }
    if meta.permissions().mode() & 0o111 == 0 {
        return Err("is not executable");
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use cloud_providers::{MapEnv, Settings};

    use super::*;

    fn read(env: &[(&str, &str)]) -> (Config, Vec<String>) {
        let mut settings = Settings::new(OPTIONS);
        settings.load_env(&MapEnv::new(env.iter().copied()));
        let (values, mut problems) = settings.parse_all();
        let config = Config::read(&values, &mut problems);
        (config, problems)
    }

    #[test]
    fn defaults_are_complete() {
        let (config, problems) = read(&[]);
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(config.gateway(), Ipv4Addr::new(10, 88, 0, 1));
        assert_eq!(config.data_dir, Path::new("/var/lib/peerpod/local"));
        assert!(config.root.is_none() && config.init.is_none());
    }

    #[test]
    fn all_problems_are_named_together() {
        let (_, problems) = read(&[
            ("LOCAL_DATA_DIR", "relative"),
            ("LOCAL_BRIDGE", "a-name-that-is-too-long"),
            ("LOCAL_SUBNET", "10.0.0.0/31"),
            ("LOCAL_TMPFS_SIZE_MIB", "lots"),
        ]);
        let text = problems.join("\n");
        for key in ["LOCAL_DATA_DIR", "LOCAL_BRIDGE", "LOCAL_SUBNET", "LOCAL_TMPFS_SIZE_MIB"] {
            assert!(text.contains(key), "{key} is not in {text}");
        }
    }

    #[test]
    fn a_subnet_given_by_one_of_its_addresses_is_understood() {
        let (config, problems) = read(&[("LOCAL_SUBNET", "192.0.2.77/24")]);
        assert!(problems.is_empty());
        assert_eq!(config.gateway(), Ipv4Addr::new(192, 0, 2, 1));
    }

    #[test]
    fn missing_programs_are_all_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("kata-agent"), "").unwrap();
        let (config, _) = read(&[("LOCAL_GUEST_DIR", dir.path().to_str().unwrap())]);
        let text = config.programs(Role::Guest).unwrap_err().to_string();
        for part in
            ["podvm-init does not exist", "kata-agent is not executable", "process-user-data", "LOCAL_AGENT"]
        {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn a_plain_machine_needs_its_first_program_and_nothing_of_a_guest() {
        let (config, _) = read(&[("LOCAL_MACHINE_INIT", "/bin/sh"), ("LOCAL_GUEST_DIR", "/nowhere")]);
        let programs = config.programs(Role::Plain).unwrap();
        assert!(programs.agent.is_none() && programs.guest_dir.is_none());
        for env in [&[][..], &[("LOCAL_MACHINE_INIT", "/nowhere/x")]] {
            let text = read(env).0.programs(Role::Plain).unwrap_err().to_string();
            assert!(text.contains("LOCAL_MACHINE_INIT"), "{text}");
        }
    }

    #[test]
    fn reserved_addresses_leave_one_for_an_instance() {
        let with = |n: &str| read(&[("LOCAL_SUBNET", "192.0.2.0/29"), ("LOCAL_RESERVED_ADDRESSES", n)]);
        let (config, problems) = with("4");
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(config.last_address(), Ipv4Addr::new(192, 0, 2, 2));
        let (_, problems) = with("5");
        assert!(problems[0].contains("LOCAL_RESERVED_ADDRESSES"), "{problems:?}");
    }

    #[test]
    fn another_init_needs_no_agent() {
        let (config, _) = read(&[("LOCAL_INIT", "/bin/sh"), ("LOCAL_GUEST_DIR", "/nowhere")]);
        let programs = config.programs(Role::Guest).unwrap();
        assert!(programs.agent.is_none() && programs.guest_dir.is_none());
    }
}
