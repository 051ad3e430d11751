//! Builds the book, and follows every link within it: what a page links to is what the reader gets.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use crate::context::Context;
use crate::tidy::normalize;
use crate::tools;

/// Builds and checks.
///
/// # Errors
///
/// When mdBook fails, and with every link that leads nowhere.
pub(crate) fn stage(context: &Context) -> Result<String> {
    let mdbook = tools::install(context, &tools::MDBOOK)?;
    let out = context.target.join("book");
    // Pages that are gone would be links' targets for ever.
    if out.exists() {
        std::fs::remove_dir_all(&out).with_context(|| format!("cannot remove {}", out.display()))?;
    }
    let run = context.program(mdbook).args(["build", "docs", "--dest-dir"]).arg(&out);
    run.visible(std::time::Duration::from_secs(300))?;
    let pages = read(&out)?;
    let (count, dead) = dead_links(&pages, &|path| out.join(path).exists());
    for link in &dead {
        println!("{link}");
    }
    ensure!(dead.is_empty(), "{} of {count} links of the book lead nowhere", dead.len());
    ensure!(count > 0, "the book has no links: were its pages read?");
    Ok(format!("{} pages, {count} links", pages.len()))
}

/// The pages of the built book by path.
fn read(out: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut pages = BTreeMap::new();
    let mut open = vec![out.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in
            std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?
        {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // All pages in one, whose links are those of the pages; and one that is served from any place.
            let other = ["print.html", "404.html", "toc.html"].contains(&name);
            if path.is_dir() {
                open.push(path);
            } else if name.ends_with(".html") && !other {
                let text = std::fs::read_to_string(&path)?;
                pages.insert(path.strip_prefix(out)?.to_owned(), text);
            }
        }
    }
    if pages.is_empty() {
        bail!("mdBook made no page in {}", out.display());
    }
    Ok(pages)
}

/// How many links within the book there are, and those that lead nowhere.
fn dead_links(pages: &BTreeMap<PathBuf, String>, exists: &dyn Fn(&Path) -> bool) -> (usize, Vec<String>) {
    let anchors: BTreeMap<&Path, BTreeSet<&str>> =
        pages.iter().map(|(page, text)| (page.as_path(), values(text, "id").collect())).collect();
    let (mut count, mut dead) = (0, Vec::new());
    for (page, text) in pages {
        // The frame of each page has links of its own, which are not the author's.
        let text = text.split_once("<main>").map_or(text.as_str(), |(_, rest)| rest);
        let text = text.split_once("</main>").map_or(text, |(body, _)| body);
        for link in values(text, "href") {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            count += 1;
            let (path, anchor) = link.split_once('#').map_or((link, None), |(path, at)| (path, Some(at)));
            let target = match path {
                "" => Some(page.clone()),
                path => normalize(&page.parent().unwrap_or(Path::new("")).join(path)),
            };
            let found = target.as_ref().is_some_and(|target| match anchors.get(target.as_path()) {
                Some(ids) => anchor.is_none_or(|anchor| ids.contains(anchor)),
                None => exists(target),
            });
            if !found {
                dead.push(format!("{}: the link {link} leads nowhere", page.display()));
            }
        }
    }
    (count, dead)
}

/// The values of an attribute.
fn values<'a>(text: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let mark = format!(" {name}=\"");
    let places: Vec<usize> = text.match_indices(&mark).map(|(at, mark)| at + mark.len()).collect();
    places.into_iter().filter_map(|at| text[at..].split_once('"').map(|(value, _)| value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_pages_and_anchors_that_are_not_there_are_found() {
        let frame =
            |body: &str| format!("<a href=\"frame.html\"></a><main>{body}</main><a href=\"frame.html\">");
        let page = frame(
            "<h1 id=\"top\">x</h1><a href=\"b/c.html#part\">1</a><a href=\"b/c.html#none\">2</a>\
             <a class=\"x\" href=\"gone.html\">3</a><a href=\"#top\">4</a><a href=\"#nowhere\">5</a>\
             <a href=\"https://example.org/gone.html\">6</a><a href=\"../out.html\">7</a><a href=\"a.svg\">8</a>",
        );
        let pages = BTreeMap::from([
            (PathBuf::from("a.html"), page),
            (PathBuf::from("b/c.html"), frame("<h2 id=\"part\">y</h2><a href=\"../a.html\">9</a>")),
        ]);
        let (count, dead) = dead_links(&pages, &|path| path == Path::new("a.svg"));
        assert_eq!(count, 8);
        assert_eq!(dead.len(), 4, "{dead:?}");
        for (link, found) in ["b/c.html#none", "gone.html", "#nowhere", "../out.html"].iter().zip(&dead) {
            assert!(found.contains(link) && found.starts_with("a.html"), "{found}");
        }
    }
}
