//! Which cloud volumes a pod has: Kata's direct-volume folders, filtered by the pod's UID.

use std::{collections::BTreeMap, fs, path::Path};

use base64::{Engine as _, engine::general_purpose::URL_SAFE};
use peerpod_gateway::VolumeEntry;
use serde::Deserialize;

const CSI_MARK: &str = "/volumes/kubernetes.io~csi/";

#[derive(Deserialize, Default)]
#[serde(default)]
struct MountInfo {
    device: String,
    fstype: String,
    metadata: Option<BTreeMap<String, String>>,
}

/// Reads the table of the pod with `uid`, in name order. An entry's place is its LUN in CreateVM and in CreateContainer
/// alike.
///
/// Entries that cannot be read or name no disk are left out with a log line. Without a UID the caller attaches
/// nothing: an unfiltered table would hold the volumes of every pod of the node.
pub fn table(dir: &Path, uid: &str) -> Vec<VolumeEntry> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<_> = entries.flatten().map(|e| e.file_name()).collect();
    names.sort();
    let found = names.iter().filter_map(|name| volume(&dir.join(name), name.to_str()?, uid));
    let number = |(mut volume, index): (VolumeEntry, u32)| {
        volume.index = index;
        volume
    };
    found.zip(0..).map(number).collect()
}

fn volume(path: &Path, name: &str, uid: &str) -> Option<VolumeEntry> {
    let source = String::from_utf8(URL_SAFE.decode(name).ok()?).ok()?;
    if uid.is_empty() || !source.contains(CSI_MARK) || !source.contains(&format!("/pods/{uid}/")) {
        return None;
    }
    let file = path.join("mountInfo.json");
    let info: MountInfo = match fs::read(&file)
        .map_err(anyhow::Error::from)
        .and_then(|b| Ok(serde_json::from_slice(&b)?))
    {
        Ok(info) => info,
        Err(error) => {
            tracing::warn!(path = %file.display(), %error, "a direct volume is left out: its mountInfo.json cannot be read");
            return None;
        }
    };
    let meta = |key: &str| info.metadata.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default();
    let disk_id =
        Some(meta("cloud-volume-path")).filter(|p| !p.is_empty()).unwrap_or_else(|| info.device.clone());
    if disk_id.is_empty() {
        tracing::warn!(path = %file.display(), "a direct volume is left out: it names no disk");
        return None;
    }
    let fs_type = if info.fstype.is_empty() { "ext4" } else { &info.fstype };
    Some(
        VolumeEntry::new(0, source, fs_type, disk_id)
            .with_encryption(meta("encrypt-type"), meta("kbs-key-id")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(dir: &Path, source: &str, info: &str) {
        let folder = dir.join(URL_SAFE.encode(source));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("mountInfo.json"), info).unwrap();
    }

    #[test]
    fn only_readable_volumes_of_the_pod_are_in_the_table() {
        let dir = tempfile::tempdir().unwrap();
        let mine = "/var/lib/kubelet/pods/u-1/volumes/kubernetes.io~csi/pvc-1/mount";
        add(
            dir.path(),
            mine,
            r#"{"device":"/dev/x","fstype":"","metadata":{"cloud-volume-path":"vol-1","encrypt-type":"luks"}}"#,
        );
        add(dir.path(), &mine.replace("u-1", "u-2"), r#"{"device":"vol-2"}"#);
        add(dir.path(), &mine.replace("pvc-1", "pvc-2"), "not json");
        add(dir.path(), &mine.replace("pvc-1", "pvc-3"), "{}");
        add(dir.path(), "/elsewhere/pods/u-1/", r#"{"device":"vol-3"}"#);
        let table = table(dir.path(), "u-1");
        assert_eq!(table.len(), 1);
        assert_eq!((table[0].disk_id.as_str(), table[0].fs_type.as_str()), ("vol-1", "ext4"));
        assert!(super::table(dir.path(), "").is_empty());
        assert!(super::table(Path::new("/nonexistent"), "u-1").is_empty());
    }
}
