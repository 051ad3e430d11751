//! Metrics as a page of the book lists them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Mutex,
};

use anyhow::{Context as _, Result, ensure};

/// What OpenMetrics adds to the name of a metric in its samples.
const SUFFIXES: [&str; 4] = ["_total", "_bucket", "_count", "_sum"];

/// One metric.
#[derive(Default)]
struct Metric {
    kind: String,
    help: String,
    labels: BTreeSet<String>,
    samples: usize,
}

/// Writes OpenMetrics text as a Markdown table with a row for each metric: name, type, labels and meaning.
///
/// # Errors
///
/// When a metric has no sample, since its labels are not known then: whoever makes the text has to set each one.
pub fn metrics_table(text: &str) -> Result<String> {
    let mut metrics: BTreeMap<&str, Metric> = BTreeMap::new();
    for line in text.lines() {
        let words =
            line.strip_prefix("# ").and_then(|line| line.split_once(' ')).filter(|(word, _)| *word != "EOF");
        if let Some((word, rest)) = words {
            let (name, value) = rest.split_once(' ').with_context(|| format!("{line:?} has no value"))?;
            let metric = metrics.entry(name).or_default();
            match word {
                "HELP" => metric.help = value.trim_end_matches('.').to_owned(),
                "TYPE" => metric.kind = value.to_owned(),
                _ => {}
            }
            continue;
        }
        let name = line.split(['{', ' ']).next().unwrap_or_default();
        let plain = SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix));
        let name = [Some(name), plain].into_iter().flatten().find(|name| metrics.contains_key(name));
        let Some(metric) = name.and_then(|name| metrics.get_mut(name)) else { continue };
        metric.samples += 1;
        let labels =
            line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map_or("", |(labels, _)| labels);
        // No value of a test has a comma or a quote in it.
        let names = labels.split(',').filter_map(|pair| Some(pair.split_once('=')?.0.to_owned()));
        metric.labels.extend(names.filter(|label| label != "le"));
    }
    let mut table = "| name | type | labels | meaning |\n| --- | --- | --- | --- |\n".to_owned();
    for (name, metric) in &metrics {
        ensure!(metric.samples > 0, "{name} has no sample: set it before the table is made");
        let total = if metric.kind == "counter" { "_total" } else { "" };
        let labels: Vec<&str> = metric.labels.iter().map(String::as_str).collect();
        table +=
            &format!("| `{name}{total}` | {} | {} | {} |\n", metric.kind, labels.join(", "), metric.help);
    }
    Ok(table)
}

/// Compares the part of a page between `<!-- marker -->` and `<!-- /marker -->` with what it should be.
///
/// With the variable `UPDATE_DOCS` in the environment of the test it is written, as `cargo xtask docs` does.
///
/// # Errors
///
/// When the page has no such part, or another one.
pub fn fresh_part(page: &Path, marker: &str, fresh: &str) -> Result<()> {
    // Several tests of a program write parts of one page.
    static PAGES: Mutex<()> = Mutex::new(());
    let _pages = PAGES.lock();
    let text = fs::read_to_string(page).with_context(|| format!("read {}", page.display()))?;
    let (begin, end) = (format!("<!-- {marker} -->\n"), format!("<!-- /{marker} -->"));
    let parts = text.split_once(&begin).and_then(|(head, rest)| Some((head, rest.split_once(&end)?.1)));
    let (head, tail) = parts.with_context(|| format!("{} has no part {marker}", page.display()))?;
    let wanted = format!("{head}{begin}{}\n{end}{tail}", fresh.trim_end());
    if wanted == text {
        return Ok(());
    }
    ensure!(
        std::env::var_os("UPDATE_DOCS").is_some(),
        "the part {marker} of {} is not what the code says: run `cargo xtask docs`, which writes it",
        page.display()
    );
    fs::write(page, wanted).with_context(|| format!("write {}", page.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP x_calls Calls by their end.\n# TYPE x_calls counter\nx_calls_total{b=\"1\",a=\"2\"} 1\n\
        # HELP x_seconds Time.\n# TYPE x_seconds histogram\nx_seconds_sum{a=\"1\"} 1\nx_seconds_bucket{le=\"1\",a=\"1\"} 1\n\
        # HELP x_now Now.\n# TYPE x_now gauge\nx_now 1\n# EOF\n";

    #[test]
    fn each_metric_is_a_row_with_its_labels() {
        let table = metrics_table(TEXT).unwrap();
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(
            rows,
            [
                "| `x_calls_total` | counter | a, b | Calls by their end |",
                "| `x_now` | gauge |  | Now |",
                "| `x_seconds` | histogram | a | Time |",
            ]
        );
    }

    #[test]
    fn a_metric_that_was_not_set_is_told() {
        let text = TEXT.replace("x_now 1\n", "");
        assert!(metrics_table(&text).unwrap_err().to_string().contains("x_now"));
    }

    #[test]
    fn a_part_of_a_page_that_is_not_fresh_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let page = dir.path().join("page.md");
        fs::write(&page, "head\n<!-- m -->\nold\n<!-- /m -->\ntail\n").unwrap();
        fresh_part(&page, "m", "old\n").unwrap();
        assert!(fresh_part(&page, "m", "new").unwrap_err().to_string().contains("cargo xtask docs"));
        assert!(fresh_part(&page, "n", "old").unwrap_err().to_string().contains("no part n"));
    }
}
