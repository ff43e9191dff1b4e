//! The Markdown pages of the tree, parsed by a CommonMark parser.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// Texts that a test copies into a generated page, where they are checked.
const PARTS: [&str; 3] =
    ["src/audit/record/docs.md", "src/protocol/refusal/docs.md", "tests/container/escape/head.md"];

/// One Markdown file.
pub struct Page {
    /// Relative to the top of the tree.
    pub path: String,
    pub blocks: Vec<Block>,
    /// Inline code.
    pub spans: Vec<Text>,
    /// Destinations of links and images.
    pub links: Vec<Text>,
    /// The ids that GitHub gives the headings.
    pub anchors: BTreeSet<String>,
}

/// A fenced code block, or an indented one (which has no language).
pub struct Block {
    /// Line of the fence, from 1.
    pub line: usize,
    /// The first word of the info string.
    pub language: String,
    /// The rest of the info string.
    pub info: String,
    pub text: String,
}

pub struct Text {
    /// From 1.
    pub line: usize,
    pub text: String,
}

impl Page {
    pub fn place(&self, line: usize) -> String {
        format!("{}:{line}", self.path)
    }

    pub fn empty(path: &str) -> Self {
        Self {
            path: path.to_owned(),
            blocks: Vec::new(),
            spans: Vec::new(),
            links: Vec::new(),
            anchors: BTreeSet::new(),
        }
    }

    fn parse(path: &str, source: &str) -> Self {
        let mut page = Self::empty(path);
        let line = |at: usize| source[..at].matches('\n').count() + 1;
        let mut block: Option<Block> = None;
        let mut heading: Option<String> = None;
        let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH;
        for (event, range) in Parser::new_ext(source, options).into_offset_iter() {
            match event {
                Event::Start(Tag::CodeBlock(kind)) => {
                    let info = match &kind {
                        CodeBlockKind::Fenced(info) => info.as_ref(),
                        CodeBlockKind::Indented => "",
                    };
                    let (language, info) = info.split_once(' ').unwrap_or((info, ""));
                    block = Some(Block {
                        line: line(range.start),
                        language: language.to_owned(),
                        info: info.trim().to_owned(),
                        text: String::new(),
                    });
                }
                Event::End(TagEnd::CodeBlock) => page.blocks.extend(block.take()),
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    page.anchor(&heading.take().unwrap_or_default());
                }
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.links.push(Text { line: line(range.start), text: dest_url.into_string() });
                }
                Event::Text(text) => {
                    if let Some(block) = &mut block {
                        block.text.push_str(&text);
                    } else if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                }
                Event::Code(text) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                    page.spans.push(Text { line: line(range.start), text: text.into_string() });
                }
                _ => {}
            }
        }
        page
    }

    /// Adds the id of a heading: GitHub lowers it, drops punctuation, and numbers repetitions.
    fn anchor(&mut self, heading: &str) {
        let kept = heading.to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let slug: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let numbered = (1..).map(|number| format!("{slug}-{number}"));
        let free = std::iter::once(slug.clone()).chain(numbered);
        let free = free.into_iter().find(|one| !self.anchors.contains(one));
        self.anchors.extend(free);
    }
}

pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Every Markdown page of the tree.
pub fn all() -> Vec<Page> {
    let pages: Vec<_> = files()
        .into_iter()
        .filter(|path| path.ends_with(".md") && !PARTS.contains(&path.as_str()))
        .map(|path| {
            let source = fs::read_to_string(root().join(&path)).unwrap();
            Page::parse(&path, &source)
        })
        .collect();
    assert!(pages.len() > 40, "only {} pages", pages.len());
    pages
}

/// Every file of the tree, relative to its top: not what builds and installations put there.
pub fn files() -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = folder.join(&name);
            let kind = entry.file_type().unwrap();
            let made = ["target", "node_modules", "__pycache__", ".git", ".portcullis"];
            if kind.is_dir() && !made.contains(&name.as_str()) {
                folders.push(path);
            } else if !kind.is_dir() {
                found.push(path.to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn headings_get_github_anchors() {
    let source = "# A `b-c` (d): e\n\n## A `b-c` (d): e\n\n## `[servers.NAME]`\n";
    let page = Page::parse("p.md", source);
    let anchors: Vec<_> = page.anchors.iter().map(String::as_str).collect();
    assert_eq!(anchors, ["a-b-c-d-e", "a-b-c-d-e-1", "serversname"]);
}
