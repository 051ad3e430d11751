//! The options and what they mean once parsed.

use std::time::Duration;

use cloud_providers::{OptionKind, OptionSpec, Source, Values, placement::PurchaseOrder, tags};

use crate::client::{Access, MetadataOptions, StaticKeys, Tags};

/// The most tags that EC2 lets a resource have.
pub(crate) const TAG_LIMIT: usize = 50;
/// Tags of ours: those of `tags::for_request`, their readable copies, the name, and three of this provider.
pub(crate) const OWN_TAGS: usize = 13;
/// The most bytes of a volume in GiB that EC2 knows.
const VOLUME_GIB_MAX: i64 = 65_536;

/// Every option of the provider.
pub const OPTIONS: &[OptionSpec] = &[
    OptionSpec::text("aws-access-key-id", "Access key id, only together with the secret key")
        .env("AWS_ACCESS_KEY_ID")
        .secret(),
    OptionSpec::text("aws-secret-key", "Secret key, only together with the access key id")
        .env("AWS_SECRET_ACCESS_KEY")
        .secret(),
    OptionSpec::text("aws-session-token", "Session token of a temporary pair of keys")
        .env("AWS_SESSION_TOKEN")
        .secret(),
    OptionSpec::text("aws-profile", "Profile of the shared configuration files"),
    OptionSpec::text("aws-region", "Region; otherwise that of the profile or of the instance this runs on")
        .env("AWS_REGION"),
    OptionSpec::text("instance-type", "Instance type of pods that ask for nothing")
        .env("PODVM_INSTANCE_TYPE")
        .default("m6a.large"),
    OptionSpec::new("instance-types", OptionKind::List, "Instance types that pods may get")
        .env("PODVM_INSTANCE_TYPES"),
    OptionSpec::new(
        "fallback-instance-types",
        OptionKind::List,
        "Instance types to try in this order where the chosen one has no room; only those that fit the pod are tried",
    )
    .env("PODVM_FALLBACK_INSTANCE_TYPES"),
    OptionSpec::bool("use-lt", "Launch from a launch template").env("USE_PODVM_LAUNCHTEMPLATE").default("false"),
    OptionSpec::text("aws-lt-name", "Name of the launch template")
        .env("PODVM_LAUNCHTEMPLATE_NAME")
        .default("kata"),
    OptionSpec::text("aws-lt-version", "Version of the launch template: a number, $Default or $Latest")
        .env("PODVM_LAUNCHTEMPLATE_VERSION")
        .default("$Default"),
    OptionSpec::text("imageid", "AMI of pod VMs; needed unless a launch template names it").env("PODVM_AMI_ID"),
    OptionSpec::text("keyname", "EC2 key pair; otherwise that of the instance this runs on").env("SSH_KP_NAME"),
    OptionSpec::new(
        "subnetid",
        OptionKind::List,
        "Subnet, or several to try in this order; otherwise that of the instance this runs on",
    )
    .env("AWS_SUBNET_ID"),
    OptionSpec::new(
        "securitygroupids",
        OptionKind::List,
        "Security groups; otherwise those of the instance this runs on",
    )
    .env("AWS_SG_IDS"),
    OptionSpec::bool("use-public-ip", "Give pod VMs a public address and use it")
        .env("USE_PUBLIC_IP")
        .default("false"),
    OptionSpec::int(
        "root-volume-size",
        0,
        VOLUME_GIB_MAX,
        "Least size of the root volume in GiB; 0 leaves it to the image",
    )
    .env("ROOT_VOLUME_SIZE")
    .default("30"),
    OptionSpec::bool("disable-cvm", "Make machines without AMD SEV-SNP").env("DISABLECVM").default("false"),
    OptionSpec::new("tags", OptionKind::Map, "More tags for everything that is made").env("TAGS"),
    OptionSpec::new(
        "purchase-option",
        OptionKind::Word(PurchaseOrder::WORDS),
        "How machines are bought",
    )
    .env("AWS_PURCHASE_OPTION")
    .default("on-demand"),
    OptionSpec::new(
        "capacity-memory",
        OptionKind::Duration,
        "How long a place without room is not tried again while there are others",
    )
    .env("AWS_CAPACITY_MEMORY")
    .default("5m0s"),
    OptionSpec::new(
        "imds-tokens",
        OptionKind::Word(&["required", "optional"]),
        "Whether the metadata service of pod VMs answers version 2 only",
    )
    .env("AWS_IMDS_TOKENS")
    .default("required"),
    OptionSpec::int(
        "imds-hop-limit",
        1,
        64,
        "Hops that answers of the metadata service may take; 1 keeps containers out",
    )
    .env("AWS_IMDS_HOP_LIMIT")
    .default("1"),
    OptionSpec::new(
        "guest-ports",
        OptionKind::List,
        "Ports of pod VMs that the verification expects open, each as port/protocol",
    )
    .env("AWS_GUEST_PORTS")
    .default("15150/tcp,4789/udp"),
    OptionSpec::text("aws-endpoint-url", "Address of AWS interfaces, for emulators").env("AWS_ENDPOINT_URL"),
    OptionSpec::text("aws-endpoint-url-ec2", "Address of the EC2 interface; has priority over -aws-endpoint-url")
        .env("AWS_ENDPOINT_URL_EC2"),
    OptionSpec::new("aws-call-timeout", OptionKind::Duration, "Longest time of one call to EC2")
        .env("AWS_CALL_TIMEOUT")
        .default("30s"),
    OptionSpec::new(
        "aws-state-timeout",
        OptionKind::Duration,
        "Longest time in which a machine, volume or interface comes up or goes",
    )
    .env("AWS_STATE_TIMEOUT")
    .default("5m0s"),
];

/// Parsed options.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) access: Access,
    /// Type of requests for nothing.
    pub(crate) instance_type: String,
    /// Types that requests may get, besides the default for requests that ask for nothing.
    pub(crate) instance_types: Vec<String>,
    pub(crate) fallback_types: Vec<String>,
    pub(crate) template: Option<Template>,
    pub(crate) image: Option<String>,
    pub(crate) key_name: Option<String>,
    /// In the order in which they are tried.
    pub(crate) subnets: Vec<String>,
    pub(crate) groups: Vec<String>,
    pub(crate) public_ip: bool,
    /// Zero leaves the size to the image.
    pub(crate) root_volume_gib: u32,
    pub(crate) cvm: Cvm,
    pub(crate) tags: Tags,
    pub(crate) purchase: PurchaseOrder,
    pub(crate) capacity_memory: Duration,
    pub(crate) metadata: MetadataOptions,
    /// Ports and protocols that the verification expects open.
    pub(crate) guest_ports: Vec<(u16, String)>,
    pub(crate) state_timeout: Duration,
}

/// The launch template and what the operator said beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// Whether machines are confidential when the request does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cvm {
    /// Nobody said anything: yes, or what the launch template says.
    Default,
    /// The operator wants it.
    Yes,
    /// The operator does not want it.
    No,
}

impl Config {
    /// Reads the parsed values and adds what is wrong with them to `problems`.
    pub(crate) fn read(values: &Values, problems: &mut Vec<String>) -> Self {
        let template = values
            .bool("use-lt")
            .then(|| Template { name: values.text("aws-lt-name"), version: values.text("aws-lt-version") });
        if template.as_ref().is_some_and(|t| t.name.is_empty()) {
            problems.push("-aws-lt-name is empty, expected the name of a launch template".into());
        }
        let image = values.optional("imageid");
        if template.is_none() && image.is_none() {
            problems.push("-imageid or PODVM_AMI_ID is required unless -use-lt is set".into());
        }
        // Only a flag can be empty: an empty variable counts as not set.
        if template.is_none() && values.text("instance-type").is_empty() {
            problems.push("-instance-type is empty, expected an instance type such as m6a.large".into());
        }
        let user_tags = values.map("tags");
        check_tags(&user_tags, problems);
        let call_timeout = values.duration("aws-call-timeout");
        let state_timeout = values.duration("aws-state-timeout");
        for (names, time) in [
            ("-aws-call-timeout or AWS_CALL_TIMEOUT", call_timeout),
            ("-aws-state-timeout or AWS_STATE_TIMEOUT", state_timeout),
        ] {
            if time.is_zero() {
                problems.push(format!("{names} is 0s, expected a longer time"));
            }
        }
        let guest_ports = values.list("guest-ports").into_iter().filter_map(|text| {
            let port = parse_port(&text);
            if port.is_none() {
                problems.push(format!(
                    "-guest-ports or AWS_GUEST_PORTS has {text:?}, expected a port and a protocol such as 15150/tcp"
                ));
            }
            port
        });
        let guest_ports = guest_ports.collect();
        let access = Access {
            region: values.optional("aws-region"),
            keys: static_keys(values, problems),
            profile: values.optional("aws-profile"),
            endpoint: endpoint(values, problems),
            endpoint_all: values.optional("aws-endpoint-url"),
            call_timeout,
        };
        let cvm = match (values.bool("disable-cvm"), values.source("disable-cvm")) {
            (true, _) => Cvm::No,
            (false, Some(Source::Default) | None) => Cvm::Default,
            (false, Some(_)) => Cvm::Yes,
        };
        Self {
            access,
            instance_type: values.text("instance-type"),
            instance_types: values.list("instance-types"),
            fallback_types: values.list("fallback-instance-types"),
            template,
            image,
            key_name: values.optional("keyname"),
            subnets: values.list("subnetid"),
            groups: values.list("securitygroupids"),
            public_ip: values.bool("use-public-ip"),
            root_volume_gib: u32::try_from(values.int("root-volume-size")).unwrap_or_default(),
            cvm,
            tags: user_tags.into_iter().collect(),
            // The word was checked by the declaration.
            purchase: values.text("purchase-option").parse().unwrap_or_default(),
            capacity_memory: values.duration("capacity-memory"),
            metadata: MetadataOptions::new(
                values.text("imds-tokens") != "optional",
                u8::try_from(values.int("imds-hop-limit")).unwrap_or(1),
            ),
            guest_ports,
            state_timeout,
        }
    }
}

/// Static keys come as a pair or not at all: half a pair is a mistake that would silently become another identity.
fn static_keys(values: &Values, problems: &mut Vec<String>) -> Option<StaticKeys> {
    let (id, secret) = (values.secret("aws-access-key-id"), values.secret("aws-secret-key"));
    let token = values.secret("aws-session-token");
    match (id, secret) {
        (Some(id), Some(secret)) => return Some(StaticKeys::new(id, secret, token)),
        (Some(_), None) => problems.push(
            "-aws-access-key-id or AWS_ACCESS_KEY_ID is set without -aws-secret-key or AWS_SECRET_ACCESS_KEY: \
             set both or none"
                .into(),
        ),
        (None, Some(_)) => problems.push(
            "-aws-secret-key or AWS_SECRET_ACCESS_KEY is set without -aws-access-key-id or AWS_ACCESS_KEY_ID: \
             set both or none"
                .into(),
        ),
        (None, None) if token.is_some() => problems.push(
            "-aws-session-token or AWS_SESSION_TOKEN is set without the pair of keys that it belongs to".into(),
        ),
        (None, None) => {}
    }
    None
}

fn endpoint(values: &Values, problems: &mut Vec<String>) -> Option<String> {
    let mut found = None;
    for (flag, env) in
        [("aws-endpoint-url-ec2", "AWS_ENDPOINT_URL_EC2"), ("aws-endpoint-url", "AWS_ENDPOINT_URL")]
    {
        let Some(url) = values.optional(flag) else { continue };
        let host = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        if host.is_none_or(|h| h.is_empty() || h.starts_with('/')) || url.contains(char::is_whitespace) {
            problems
                .push(format!("-{flag} or {env} is {url:?}, expected a URL such as https://ec2.example.org"));
        }
        found = found.or(Some(url));
    }
    found
}

/// EC2's limits of tags: keys of 1 to 128 and values of at most 256 characters, `aws:` kept for Amazon.
fn check_tags(user_tags: &[(String, String)], problems: &mut Vec<String>) {
    let names = "-tags or TAGS";
    if let Err(error) = tags::check_user_tags(user_tags.iter().map(|(key, _)| key.as_str())) {
        problems.push(format!("{names}: {error}"));
    }
    let most = TAG_LIMIT - OWN_TAGS;
    if user_tags.len() > most {
        problems.push(format!("{names} has {} tags, at most {most} fit", user_tags.len()));
    }
    let allowed = |c: char| c.is_alphanumeric() || c.is_whitespace() || "_.:/=+-@".contains(c);
    for (key, value) in user_tags {
        let why = if key.chars().count() > 128 {
            "a key is longer than 128 characters"
        } else if value.chars().count() > 256 {
            "a value is longer than 256 characters"
        } else if key.to_ascii_lowercase().starts_with("aws:") {
            "keys with aws: belong to Amazon"
        } else if key == "Name" {
            "the name is the provider's"
        } else if !key.chars().chain(value.chars()).all(allowed) {
            "letters, digits, spaces and _.:/=+-@ are allowed"
        } else {
            continue;
        };
        problems.push(format!("{names}: tag {key:?} is refused: {why}"));
    }
}

fn parse_port(text: &str) -> Option<(u16, String)> {
    let (port, protocol) = text.split_once('/')?;
    let port = port.parse().ok().filter(|p| *p > 0)?;
    matches!(protocol, "tcp" | "udp").then(|| (port, protocol.to_owned()))
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
