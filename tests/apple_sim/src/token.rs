//! Tokens of Metal or C++ text, with the white space kept so that lines stay where they are.

/// What a token is, as far as the translator needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Blanks, newlines, comments and preprocessor lines.
    Space,
    /// An identifier or keyword.
    Word,
    /// A numeric literal.
    Number,
    /// A string or character literal.
    Text,
    /// One character of punctuation.
    Mark,
}

/// A piece of the text.
#[derive(Debug, Clone, Copy)]
pub struct Token<'a> {
    /// Its kind.
    pub kind: Kind,
    /// Its characters.
    pub text: &'a str,
    /// Where it starts, in bytes.
    pub at: usize,
}

fn token_end(rest: &str, line_start: bool) -> (Kind, usize) {
    let bytes = rest.as_bytes();
    let run = |from: usize, keep: &dyn Fn(char) -> bool| {
        rest[from..].find(|c: char| !keep(c)).map_or(rest.len(), |n| from + n)
    };
    match bytes[0] {
        b'#' if line_start => {
            let mut end = 0;
            loop {
                end += rest[end..].find('\n').map_or(rest.len() - end, |n| n + 1);
                if end >= rest.len() || !rest[..end].ends_with("\\\n") {
                    return (Kind::Space, end);
                }
            }
        }
        c if c.is_ascii_whitespace() => (Kind::Space, run(0, &|c| c.is_ascii_whitespace())),
        b'/' if rest.starts_with("//") => (Kind::Space, rest.find('\n').unwrap_or(rest.len())),
        b'/' if rest.starts_with("/*") => (Kind::Space, rest.find("*/").map_or(rest.len(), |n| n + 2)),
        c if c.is_ascii_alphabetic() || c == b'_' => {
            (Kind::Word, run(0, &|c| c.is_ascii_alphanumeric() || c == '_'))
        }
        c if c.is_ascii_digit() || (c == b'.' && bytes.get(1).is_some_and(u8::is_ascii_digit)) => {
            let mut end = run(0, &|c| c.is_ascii_alphanumeric() || c == '.');
            while matches!(bytes[end - 1], b'e' | b'E') && matches!(bytes.get(end), Some(b'+' | b'-')) {
                end = run(end + 1, &|c| c.is_ascii_alphanumeric() || c == '.');
            }
            (Kind::Number, end)
        }
        quote @ (b'"' | b'\'') => {
            let mut end = 1;
            while end < bytes.len() && bytes[end] != quote {
                end += if bytes[end] == b'\\' { 2 } else { 1 };
            }
            (Kind::Text, (end + 1).min(rest.len()))
        }
        _ => (Kind::Mark, rest.chars().next().map_or(1, char::len_utf8)),
    }
}

/// Splits `source` into tokens that together are the whole of it.
#[must_use]
pub fn tokenize(source: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut at = 0;
    let mut line_start = true;
    while at < source.len() {
        let (kind, length) = token_end(&source[at..], line_start);
        let text = &source[at..at + length];
        line_start = match text.rfind('\n') {
            Some(n) => text[n + 1..].trim().is_empty(),
            None => line_start && kind == Kind::Space && text.trim().is_empty(),
        };
        tokens.push(Token { kind, text, at });
        at += length;
    }
    tokens
}
