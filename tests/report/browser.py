"""Opens reports in headless Chromium and fails on what a reader would miss or be harmed by.

usage: browser.py SCREENSHOTS PLOTS=PAGE...   each page must show PLOTS plots
       browser.py --expect-failure PAGE...    each page has 3 plots and a fault that must be found
Speaks WebDriver to `chromedriver` with the standard library alone.
"""
import base64
import json
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

WIDTHS = (390, 1400)
SCHEMES = ("light", "dark")
SECTIONS = ("evidence", "machine")
# No browser accepts less than 3:1 for graphics and 4.5:1 for text as legible (WCAG 2.2, 1.4.3 and 1.4.11).
GRAPHICS_CONTRAST, TEXT_CONTRAST = 3.0, 4.5
# Below this many pixels axis labels cannot be read.
SMALLEST_TEXT = 9.5

# What the page looks like from inside, gathered once for each width and scheme.
PROBE = r"""
const rgb = color => (color.match(/[\d.]+/g) || []).slice(0, 3).map(Number);
const luminance = color => {
  const [r, g, b] = rgb(color).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (a, b) => {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
};
const ground = element => {
  for (; element; element = element.parentElement) {
    const color = getComputedStyle(element).backgroundColor;
    if (color !== 'rgba(0, 0, 0, 0)' && color !== 'transparent') return color;
  }
  return 'rgb(255, 255, 255)';
};
const plots = [...document.querySelectorAll('svg.plot')];
const inside = (outer, inner) => inner.left >= outer.left - 1 && inner.right <= outer.right + 1 &&
  inner.top >= outer.top - 1 && inner.bottom <= outer.bottom + 1;
const overlap = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
const texts = plots.flatMap(plot => {
  const boxes = [...plot.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
  return boxes.flatMap(([text, box], i) => [
    ...(inside(plot.getBoundingClientRect(), box) ? [] : [`"${text}" leaves its plot`]),
    ...boxes.slice(0, i).filter(([, other]) => overlap(box, other)).map(([other]) => `"${text}" covers "${other}"`)]);
});
const legible = [...document.querySelectorAll('h1, h2, p, li, td, th, dt, dd, caption, figcaption, svg.plot text')]
  .filter(e => e.textContent.trim())
  .map(e => [contrast(e instanceof SVGElement ? getComputedStyle(e).fill : getComputedStyle(e).color, ground(e)),
             e.textContent.slice(0, 40)]);
const drawn = [...document.querySelectorAll('.marker')].map(e => contrast(getComputedStyle(e).fill, ground(e)));
return {
  title: document.title,
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  plots: plots.map(plot => {
    const box = plot.getBoundingClientRect();
    const names = (plot.getAttribute('aria-labelledby') || '').split(' ').map(id => document.getElementById(id));
    return {width: box.width, height: box.height, role: plot.getAttribute('role'),
            named: names.length === 2 && names.every(e => e && plot.contains(e) && e.textContent.trim()),
            ticks: plot.querySelectorAll('.grid').length,
            series: [...plot.querySelectorAll('.series')].map(s => s.querySelectorAll('.marker').length),
            smallest: Math.min(...[...plot.querySelectorAll('text')].map(t =>
              parseFloat(getComputedStyle(t).fontSize) * box.width / plot.viewBox.baseVal.width))};
  }),
  texts,
  faint: legible.filter(([ratio]) => ratio < arguments[0]).map(([ratio, text]) => `${text} (${ratio.toFixed(1)}:1)`),
  faint_markers: drawn.filter(ratio => ratio < arguments[1]).length,
  tables: [...document.querySelectorAll('table')].map(t => ({id: t.id, rows: t.querySelectorAll('tbody tr').length,
    caption: !!t.caption && !!t.caption.textContent.trim()})),
  duplicates: [...document.querySelectorAll('[id]')].map(e => e.id).filter((id, i, all) => all.indexOf(id) !== i),
  missing: arguments[2].filter(id => !document.getElementById(id)),
  active: document.querySelectorAll('script, iframe, object, embed, img, form, [onerror], [onload], [onclick]').length,
};
"""


class Driver:
    """A session of headless Chromium."""

    def __init__(self, profile):
        log = open(pathlib.Path(profile) / "chromedriver.log", "w+")
        self.process = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=log, text=True)
        for line in self.process.stdout:
            if "started successfully on port" in line:
                self.base = "http://127.0.0.1:" + line.rsplit(" ", 1)[1].strip(". \n")
                break
        else:
            raise SystemExit("error: chromedriver did not start")
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic",
                     "--no-first-run", "--disable-background-networking", "--disable-component-update",
                     "--disable-sync", "--hide-scrollbars", "--user-data-dir=" + profile]
        options = {"binary": "/usr/bin/chromium", "args": arguments, "perfLoggingPrefs": {"enableNetwork": True}}
        capabilities = {"browserName": "chrome", "goog:chromeOptions": options,
                        "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        reply = self.call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self.base += "/session/" + reply["sessionId"]

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return json.load(reply)["value"]
        except urllib.error.HTTPError as error:
            raise SystemExit("error: " + json.load(error)["value"]["message"]) from error

    def devtools(self, command, **parameters):
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def log(self, kind):
        return self.call("POST", "/se/log", {"type": kind})

    def close(self):
        self.call("DELETE", "")
        self.process.terminate()
        self.process.wait()


def requests(driver, page):
    """Addresses that were asked for, but for the page itself and data within it."""
    found = []
    for entry in driver.log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            address = message["params"]["request"]["url"]
            if address != page and not address.startswith("data:") and not address.startswith("about:"):
                found.append(address)
    return found


def look(driver, path, expected_plots, screenshots):
    """Problems of one page."""
    problems = []
    address = path.resolve().as_uri()
    for width in WIDTHS:
        for scheme in SCHEMES:
            driver.devtools("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
            driver.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            driver.log("browser")
            driver.log("performance")
            driver.call("POST", "/url", {"url": address})
            seen = driver.call("POST", "/execute/sync", {"script": PROBE, "args": [TEXT_CONTRAST, GRAPHICS_CONTRAST, SECTIONS]})
            # What a late script or a failed image would do shows after the page has loaded.
            time.sleep(0.2)
            found = []
            if seen["overflow"] > 0:
                found.append(f"it is {seen['overflow']} pixels wider than the window")
            if len(seen["plots"]) != expected_plots:
                found.append(f"{len(seen['plots'])} plots instead of {expected_plots}")
            for index, plot in enumerate(seen["plots"]):
                if plot["width"] < 250 or plot["height"] < 150 or plot["role"] != "img" or not plot["named"]:
                    found.append(f"plot {index} is too small or has no name: {plot}")
                if plot["ticks"] < 3 or not plot["series"] or not all(plot["series"]):
                    found.append(f"plot {index} lacks ticks or markers: {plot}")
                if plot["smallest"] < SMALLEST_TEXT:
                    found.append(f"plot {index} has text of {plot['smallest']:.1f} pixels")
            if expected_plots and {table["id"] for table in seen["tables"]} != {"measurements", "compilation", "evidence"}:
                found.append(f"its tables are {seen['tables']}")
            found += [f"table {table['id']} is empty or has no caption" for table in seen["tables"] if not table["rows"] or not table["caption"]]
            found += seen["texts"]
            found += [f"too faint: {text}" for text in seen["faint"]]
            if seen["faint_markers"]:
                found.append(f"{seen['faint_markers']} markers are too faint")
            if seen["duplicates"] or seen["missing"]:
                found.append(f"ids: {seen['duplicates']} twice, {seen['missing']} not there")
            if seen["active"]:
                found.append(f"{seen['active']} elements that run or load something")
            if not seen["title"].startswith("Matrix products on "):
                found.append(f"its title became {seen['title']!r}")
            found += [f"asked for {request}" for request in requests(driver, address)]
            found += [f"console: {entry['message']}" for entry in driver.log("browser")]
            if screenshots:
                picture = driver.devtools("Page.captureScreenshot", captureBeyondViewport=True)["data"]
                name = f"{path.stem}-{width}-{scheme}.png"
                (screenshots / name).write_bytes(base64.b64decode(picture))
            problems += [f"{path.name}, {width} pixels, {scheme}: {problem}" for problem in found]
    return problems


def main(arguments):
    failing = arguments[0] == "--expect-failure"
    screenshots = None if failing else pathlib.Path(arguments[0])
    if screenshots:
        screenshots.mkdir(parents=True, exist_ok=True)
    good = True
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = Driver(profile)
        try:
            for argument in arguments[1:]:
                plots, page = (3, argument) if failing else argument.split("=", 1)
                problems = look(driver, pathlib.Path(page), int(plots), screenshots)
                if failing:
                    good &= bool(problems)
                    print(f"{pathlib.Path(page).stem}: {problems[0] if problems else 'NOT FOUND'}")
                else:
                    good &= not problems
                    print(f"{pathlib.Path(page).name}: {'; '.join(problems) if problems else plots + ' plots, good'}")
        finally:
            driver.close()
    return 0 if good else 1


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    sys.exit(main(sys.argv[1:]))
