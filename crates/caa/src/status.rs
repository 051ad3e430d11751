//! How errors of the parts become the status that a shim prints in the pod's event.

use cloud_providers::{Error, ErrorKind, Retry};
use peerpod_gateway::GatewayError;
use peerpod_net::{NetError, NetErrorKind};
use peerpod_proto::{Code, Status};

/// What a kind of error means for the people of a pod.
struct Meaning {
    kind: ErrorKind,
    code: Code,
    /// What happened.
    words: &'static str,
    /// What to do about it.
    hint: &'static str,
}

/// The kinds of the contract. A kind that is not here is one that this version does not know: ours.
const MEANINGS: &[Meaning] = &[
    Meaning {
        kind: ErrorKind::Config,
        code: Code::FailedPrecondition,
        words: "an option or annotation cannot be used",
        hint: "mend the one that is named",
    },
    Meaning {
        kind: ErrorKind::Auth,
        code: Code::Unauthenticated,
        words: "the cloud does not accept the daemon's credentials",
        hint: "renew them",
    },
    Meaning {
        kind: ErrorKind::Permission,
        code: Code::PermissionDenied,
        words: "the daemon's identity lacks a permission",
        hint: "grant the one that is named",
    },
    Meaning {
        kind: ErrorKind::Quota,
        code: Code::ResourceExhausted,
        words: "a quota of the account is reached",
        hint: "raise it, or free some of what it counts",
    },
    Meaning {
        kind: ErrorKind::Capacity { zone: None, instance_type: None },
        code: Code::ResourceExhausted,
        words: "the cloud has no room for such a machine",
        hint: "allow more zones or instance types, or wait",
    },
    Meaning {
        kind: ErrorKind::Throttled,
        code: Code::Unavailable,
        words: "the cloud takes no more calls for now",
        hint: "lower -cloud-creates-per-second, or raise the account's limit",
    },
    Meaning {
        kind: ErrorKind::NotFound,
        code: Code::NotFound,
        words: "something that the request names is not there",
        hint: "mend what names it",
    },
    Meaning {
        kind: ErrorKind::Conflict,
        code: Code::AlreadyExists,
        words: "another machine has the name or the token",
        hint: "look whose it is; it was not touched",
    },
    Meaning {
        kind: ErrorKind::Transient,
        code: Code::Unavailable,
        words: "a fault that passes",
        hint: "the kubelet tries again",
    },
    Meaning {
        kind: ErrorKind::Unsupported,
        code: Code::FailedPrecondition,
        words: "the provider cannot do what the pod asks for",
        hint: "leave it out of the pod or the options",
    },
    Meaning {
        kind: ErrorKind::Cancelled,
        code: Code::Canceled,
        words: "the call was ended before the cloud had done it",
        hint: "see what ended it",
    },
    Meaning {
        kind: ErrorKind::Internal,
        code: Code::Internal,
        words: "a fault of the daemon, or an answer that it does not know",
        hint: "report it with the daemon's log",
    },
];

fn meaning(kind: &ErrorKind) -> &'static Meaning {
    let of = |label: &str| MEANINGS.iter().find(|meaning| meaning.kind.label() == label);
    // The last one is the fault of ours.
    of(kind.label()).unwrap_or(&MEANINGS[MEANINGS.len() - 1])
}

/// Maps an error of a provider.
///
/// What happened and what to do come first, since the text of an event ends after 1024 bytes; the operation and the cloud's
/// own code and message follow.
pub fn of_provider(step: &str, error: &Error) -> Status {
    let meaning = meaning(error.kind());
    Status::new(meaning.code, format!("{step}: {} ({}): {}", meaning.words, meaning.hint, error.report()))
}

/// Returns what becomes of each kind of error as a table of a page.
pub fn table() -> String {
    let mut text =
        "| kind | code | the event says | by itself, the call is |\n| --- | --- | --- | --- |\n".to_owned();
    for Meaning { kind, code, words, hint } in MEANINGS {
        let repeated = match Error::new(kind.clone(), "").retry() {
            Retry::After { delay } => format!("repeated after at least {delay:?}"),
            Retry::Elsewhere => "made at the next place, where the provider has several".to_owned(),
            _ => "not repeated".to_owned(),
        };
        let number = *code as i32;
        text.push_str(&format!("| `{kind}` | {number} {code:?} | {words} ({hint}) | {repeated} |\n"));
    }
    text
}

/// Maps an error of the network.
pub fn of_network(step: &str, error: &NetError) -> Status {
    let code = match error.kind() {
        NetErrorKind::NetnsMissing | NetErrorKind::InvalidInput => Code::InvalidArgument,
        NetErrorKind::NoDefaultRoute
        | NetErrorKind::NoAddress
        | NetErrorKind::ManyAddresses
        | NetErrorKind::NoInterface
        | NetErrorKind::NameTaken
        | NetErrorKind::Unsupported => Code::FailedPrecondition,
        NetErrorKind::IdInUse | NetErrorKind::IdOutOfRange => Code::ResourceExhausted,
        NetErrorKind::Cancelled => Code::Canceled,
        NetErrorKind::TimedOut => Code::DeadlineExceeded,
        _ => Code::Internal,
    };
    Status::new(code, format!("{step}: {}", error.chain()))
}

/// Maps an error of the gateway.
pub fn of_gateway(step: &str, error: GatewayError) -> Status {
    let mut status = Status::from(error);
    status.message = format!("{step}: {}", status.message);
    status
}

/// Maps any other error: ours.
pub fn internal(step: &str, error: &anyhow::Error) -> Status {
    Status::new(Code::Internal, format!("{step}: {error:#}"))
}

/// Maps an error of a file; a full disk gets a code of its own.
pub fn of_file(step: &str, error: &std::io::Error) -> Status {
    let full = matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
    Status::new(if full { Code::ResourceExhausted } else { Code::Internal }, format!("{step}: {error}"))
}
