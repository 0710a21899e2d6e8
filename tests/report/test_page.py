import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hnf_offline.errors import UsageError
from hnf_offline.report import write_report
from hnf_offline.table import table

from . import made

RUNS = {
    "spike": made.spike_run,
    "healthy": made.healthy_run,
    "nan": made.nan_run,
    "log only": made.log_only_run,
}
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Reader(HTMLParser):
    """Checks that tags nest, and keeps what the tests ask for."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links, self.ids = [], [], [], []
        self.untitled = 0

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if self.open and self.open[-1] == "svg-figure" and tag != "title":
            self.untitled += 1
        if self.open and self.open[-1] == "svg-figure":
            self.open[-1] = "svg"
        if tag not in VOID:
            self.open.append("svg-figure" if tag == "svg" and attributes.get("role") == "img" else tag)
        self.links += [attributes[key] for key in ("href", "src") if key in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag


def read(page: Path) -> Reader:
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


@pytest.fixture(scope="module", params=RUNS)
def report(request, tmp_path_factory):
    run = RUNS[request.param]()
    out = tmp_path_factory.mktemp("report")
    return run, write_report(run.findings, run.log, run.profile, out, command="hnf report run")


def test_the_page_is_well_formed_accessible_and_needs_no_network(report):
    _, page = report
    reader = read(page)
    names = [tag for tag, _ in reader.tags]
    assert names.count("h1") == 1
    assert reader.untitled == 0
    assert names.count("table") == names.count("caption")
    assert all("scope" in attributes for tag, attributes in reader.tags if tag == "th")
    assert all(
        link.startswith(("#", "data:image/png;base64,", "figures/", "findings.json")) for link in reader.links
    )
    assert {link[1:] for link in reader.links if link.startswith("#")} <= set(reader.ids)
    text = page.read_text(encoding="utf-8")
    assert "http" not in re.sub(r"http-equiv", "", text)
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_every_link_leads_to_a_file_and_nothing_is_left_behind(report):
    _, page = report
    linked = [link for link in read(page).links if link.startswith(("figures/", "findings"))]
    assert linked
    assert all((page.parent / link).is_file() for link in linked)
    assert {entry.name for entry in page.parent.iterdir()} == {"index.html", "findings.json", "figures"}
    assert {f"figures/{one.name}" for one in (page.parent / "figures").iterdir()} == set(linked) - {
        "findings.json"
    }


def test_findings_are_strict_json_and_say_what_the_page_says(report):
    run, page = report

    def refuse(value):
        raise AssertionError(value)

    document = json.loads((page.parent / "findings.json").read_text(), parse_constant=refuse)
    assert document == json.loads(json.dumps(run.findings.to_json()))
    assert document["verdict"]["sentence"] in page.read_text(encoding="utf-8").replace("&#39;", "'")


def test_a_typical_report_is_small(report):
    _, page = report
    assert page.stat().st_size <= 300_000


def test_the_verdict_is_a_word_before_any_picture_and_the_sections_are_in_order(tmp_path):
    run = made.spike_run()
    text = write_report(run.findings, run.log, run.profile, tmp_path).read_text(encoding="utf-8")
    order = ["✕ Diverged", "2 spikes are too few", "last healthy checkpoint", 'class="chart"', "optimizer.pt in 17",
             'id="spikes"', 'id="map"', 'id="lead"', 'id="layers"', 'id="health"', 'id="advice"', 'id="methods"',
             'id="data"']  # fmt: skip
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert "checkpoint-150 on the rows of step 151 gives 3.4282, the log says 3.4282" in text
    assert "2 × log line unreadable" in text
    assert "cut short" in text
    assert text.count("<details open") == 1


def test_only_what_was_measured_has_a_method_box(report):
    run, page = report
    text = page.read_text(encoding="utf-8")
    measured = set(run.profile["quantity"].unique().to_list())
    shown = set(re.findall(r'<details class="method"><summary><code>([^<]+)', text))
    assert shown <= measured
    assert ("hessian.stability_ratio" in shown) == ("hessian.stability_ratio" in measured)


def test_names_from_files_cannot_become_markup(tmp_path):
    run = made.spike_run()
    evil = "<script>alert(1)</script>"
    layer = "layers.0.\"'><img src=x onerror=alert(2)>\x1b[31m\u202e$\\frac"
    profile = run.profile.with_columns(layer=run.profile["layer"].replace(made.GUILTY, layer))
    findings = replace(
        run.findings,
        run={**run.findings.run, "name": evil, "missing": [{"what": evil, "cost": layer}], "model": evil},
        verdict={"word": "Spike", "sentence": evil, "caveat": layer},
        stories=tuple(replace(story, sentence=evil, first_layer=layer) for story in run.findings.stories),
    )
    page = write_report(findings, run.log, profile, tmp_path, command=f"hnf report '{evil}'")
    text = page.read_text(encoding="utf-8")
    assert text.count("<script>") == 1  # our own
    assert "onerror=alert(2)>" not in text
    assert "\x1b" not in text and "\u202e" not in text
    tags = {tag for tag, _ in read(page).tags}
    assert "img" not in tags


def test_writing_again_gives_the_same_bytes_and_drops_figures_that_are_gone(tmp_path):
    run = made.log_only_run()
    page = write_report(run.findings, run.log, run.profile, tmp_path)
    before = {one.name: one.read_bytes() for one in sorted(tmp_path.rglob("*")) if one.is_file()}
    write_report(run.findings, run.log, run.profile, tmp_path)
    assert before == {one.name: one.read_bytes() for one in sorted(tmp_path.rglob("*")) if one.is_file()}
    (tmp_path / "figures" / "mine.png").write_bytes(b"kept")
    quiet = made.healthy_run()
    write_report(quiet.findings, quiet.log, table(), tmp_path)
    left = {one.name for one in (tmp_path / "figures").iterdir()}
    assert "spike_1.png" not in left and {"mine.png", "key_picture.png"} <= left
    assert page.is_file()


def test_a_failure_leaves_the_old_report_whole(tmp_path, monkeypatch):
    run = made.log_only_run()
    page = write_report(run.findings, run.log, run.profile, tmp_path)
    before = page.read_bytes()
    from hnf_offline.report import page as module

    def fail(*_, **__):
        raise RuntimeError("no")

    monkeypatch.setattr(module, "report_page", fail)
    with pytest.raises(RuntimeError):
        write_report(made.healthy_run().findings, run.log, run.profile, tmp_path)
    assert page.read_bytes() == before
    assert not [one for one in tmp_path.iterdir() if one.name.startswith(".")]


def test_a_folder_that_cannot_be_written_is_one_plain_error(tmp_path):
    run = made.healthy_run()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_report(run.findings, run.log, run.profile, tmp_path / "file" / "below")


def test_no_log_and_no_profile_still_make_a_page(tmp_path):
    findings = made.quiet_findings("empty", "Cannot say", "Nothing could be read.")
    text = write_report(findings, None, table(), tmp_path).read_text(encoding="utf-8")
    assert "Nothing to draw" in text
    assert "? Cannot say" in text


def test_400_layers_by_500_checkpoints_fit_into_one_megabyte(tmp_path):
    run = made.large_run()
    page = write_report(run.findings, run.log, run.profile, tmp_path)
    assert page.stat().st_size <= 1_000_000
    reader = read(page)
    assert sum(attributes.get("class") == "map" for tag, attributes in reader.tags if tag == "svg") == 4
    assert "Every layer, one thin row each" in page.read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_first_screen_holds_verdict_facts_and_key_picture(tmp_path):
    run = made.spike_run()
    page = write_report(run.findings, run.log, run.profile, tmp_path / "out")
    probe = (
        "<script>addEventListener('load',()=>setTimeout(()=>{document.title='bottom='+Math.ceil("
        "document.querySelector('header figure svg').getBoundingClientRect().bottom)"
        "+' wide='+(document.documentElement.scrollWidth<=innerWidth)+'.'},50))</script></body>"
    )
    copy = tmp_path / "probe.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--window-size=1400,900", "--virtual-time-budget=2000", "--dump-dom", copy.as_uri()],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    found = re.search(r"<title>bottom=(\d+) wide=(\w+)\.", done.stdout)
    assert found, done.stderr[-500:]
    assert int(found[1]) <= 900
    assert found[2] == "true"
