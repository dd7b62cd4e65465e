"""The page's own HTML: cards, the line above them, errors. All text of the database is escaped."""

import base64
import hashlib
from decimal import Decimal
from html import escape
from urllib.parse import quote


def cards(catalog, rows):
    """The pictures of a search's rows, the best first."""
    if not rows:
        return '<div class="note"><b>Nothing found</b><p>No picture passes all filters.</p></div>'
    best = max((row[-1] for row in rows if row[-1] is not None), default=None)
    # Gradio changes what is there into what comes, piece by piece, and a picture stays until the next
    # is loaded: under another one's caption. An element of another name is made anew.
    name = f"cards-{hashlib.sha256(repr([row[0] for row in rows]).encode()).hexdigest()[:12]}"
    inner = "".join(card(catalog, row, best) for row in rows)
    return f'<{name} class="cards">{inner}</{name}>'


def card(catalog, row, best):
    key, description, *facts, score = row
    address = f"pictures/{quote(str(key), safe='')}"
    caption = escape(description or "not described")
    shown = "".join(f"<li>{escape(fact(value))}</li>" for value in facts if value is not None)
    return f"""
<article class="card" data-row="{escape(str(key))}">
  <button class="picture" data-id="{escape(str(key))}" aria-label="More like this: {caption}">
    <img src="{address}" alt="{caption}" loading="lazy"><span>More like this</span>
  </button>
  <a class="open" href="{address}?size=large" target="_blank" aria-label="Open the picture">&#8599;</a>
  <p class="caption">{caption}</p>
  <ul>{shown}</ul>
  {score_mark(score, best)}
</article>"""


def fact(value):
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def score_mark(score, best):
    """The score in figures, and as a bar against the best where that is positive."""
    if score is None:
        return ""
    share = max(0.0, min(1.0, float(score) / float(best))) if best and best > 0 else 0
    return (
        f'<div class="score" title="Score"><span><i style="width:{100 * share:.0f}%"></i></span>'
        f"<b>{float(score):.4f}</b></div>"
    )


def headline(catalog, request, answer, about=""):
    """What was searched, how many pictures came, how long PostgreSQL took, by which indexes."""
    count = len(answer.rows)
    pictures = "1 picture" if count == 1 else f"{count} pictures"
    if request.like is None and not request.text:
        title = "Newest pictures"
    elif about:
        title = about
    else:
        title = f"Nearest to <q>{escape(request.text)}</q>"
    used = "".join(f"<code>{escape(name)}</code>" for name in answer.indexes) or "no index"
    return (
        f'<div class="headline" data-ms="{answer.milliseconds:.6f}">'
        f'<div class="title">{title}</div><div class="figures"><span>{pictures}</span>'
        f'<span class="latency"><b>{answer.milliseconds:.1f} ms</b>'
        f" in PostgreSQL</span><span>{used}</span></div></div>"
    )


def like_title(key, description):
    return (
        f'<img src="pictures/{quote(str(key), safe="")}" alt=""> '
        f"More like <q>{escape(description or 'this picture')}</q>{clear_button()}"
    )


def picture_title(preview, description, milliseconds):
    """Title of a search by an uploaded picture; `preview` is that as small WebP."""
    data = base64.b64encode(preview).decode()
    return (
        f'<img src="data:image/webp;base64,{data}" alt="your picture"> Your picture shows '
        f"<q>{escape(description)}</q> <small>described in {milliseconds:.0f} ms</small>{clear_button()}"
    )


def clear_button():
    return '<button class="clear" data-clear title="Back to all pictures" aria-label="Back">&times;</button>'


def empty(catalog):
    return (
        f'<div class="note"><b>No pictures yet</b><p>The table <code>{escape(catalog.table)}</code> '
        "is empty. <code>examples/load.py</code> fills it.</p></div>"
    )


def error(problem):
    """A `Problem`, with all that PostgreSQL says of it."""
    parts = [f"<b>{escape(problem.message)}</b>"]
    if problem.detail:
        parts.append(f"<p>{escape(problem.detail)}</p>")
    if problem.hint:
        parts.append(f'<p class="hint">{escape(problem.hint)}</p>')
    if problem.code:
        parts.append(f"<small>SQLSTATE {escape(problem.code)}</small>")
    return f'<div class="note error" role="alert">{"".join(parts)}</div>'


def header(catalog):
    rows = catalog.rows_estimate
    count = f"about {rows:,} pictures in " if rows > 0 else ""
    return (
        "<header><h1>pg_sight <span>gallery</span></h1>"
        f"<p>{count}<code>{escape(catalog.table)}</code>, searched by meaning in PostgreSQL</p></header>"
    )


def examples(texts):
    """Searches to start with, as buttons."""
    if not texts:
        return ""
    buttons = "".join(f'<button data-text="{escape(t)}">{escape(t)}</button>' for t in texts)
    return f'<div class="examples"><span>Try</span>{buttons}</div>'
