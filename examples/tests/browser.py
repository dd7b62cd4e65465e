"""The gallery's page in a headless Chromium, as a person uses it."""

import json
import re
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

# The first search of a database loads the models.
WAIT_S = 40
WIDE, NARROW = (1440, 1100), (500, 900)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@dataclass(frozen=True)
class Card:
    """A picture that the page shows."""

    id: str
    caption: str
    facts: list
    score: float | None


class Browser:
    """A page of the gallery. What changes the search waits until its answer is there."""

    def __init__(self):
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-")
        options = webdriver.ChromeOptions()
        options.binary_location = program("chromium")
        for flag in [*FLAGS, f"--user-data-dir={self._profile.name}"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = webdriver.ChromeService(program("chromedriver"))
        self._driver = webdriver.Chrome(options=options, service=service)
        self._driver.set_window_size(*WIDE)

    def quit(self):
        self._driver.quit()
        self._profile.cleanup()

    def open(self, address):
        """Loads the page, and waits for its first pictures."""
        self._driver.get("about:blank")
        self._driver.get(address)
        self._wait(lambda: self._find("#headline .title"))
        grant = {
            "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"],
            "origin": address,
        }
        self._driver.execute_cdp_cmd("Browser.grantPermissions", grant)

    # What the page shows.

    def cards(self):
        """The pictures in their order."""
        found = self._driver.execute_script("""
            return [...document.querySelectorAll('.card')].map(card => [
                card.dataset.row,
                card.querySelector('.caption').textContent,
                [...card.querySelectorAll('li')].map(fact => fact.textContent),
                card.querySelector('.score b')?.textContent])""")
        return [Card(key, text, facts, score and float(score)) for key, text, facts, score in found]

    def headline(self):
        return self._text(".headline")

    def note(self):
        return self._text(".note")

    def sql(self):
        return self._text("#sql .cm-content")

    def plan(self):
        return self._text("#plan .cm-content")

    def title(self):
        return self._driver.title

    def page_width(self):
        return self._driver.execute_script("return document.documentElement.scrollWidth")

    def broken_pictures(self):
        """Addresses of pictures in view that did not come."""
        pictures = "[...document.querySelectorAll('.card img')].slice(0, 4)"
        self._wait(lambda: self._driver.execute_script(f"return {pictures}.every(i => i.complete)"))
        return self._driver.execute_script(
            f"return {pictures}.filter(i => !i.naturalWidth || !i.currentSrc).map(i => i.src)"
        )

    def copied_sql(self):
        """The SQL that the copy button gives."""
        self._driver.execute_async_script("navigator.clipboard.writeText('').then(arguments[0])")
        self._find("#sql button").click()
        read = "navigator.clipboard.readText().then(arguments[0])"
        return self._wait(lambda: self._driver.execute_async_script(read))

    def screenshot(self, file):
        self._driver.execute_script("window.scrollTo(0, 0)")
        self._driver.save_screenshot(str(file))

    def requested(self):
        """Addresses that pages have asked for since this was asked last, without the browser's own."""
        messages = [
            json.loads(entry["message"])["message"] for entry in self._driver.get_log("performance")
        ]
        addresses = [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
        return [
            address for address in addresses if not re.match("(chrome|data|blob|about):", address)
        ]

    def complaints(self):
        """Errors in the browser's console since this was asked last."""
        return [e["message"] for e in self._driver.get_log("browser") if e["level"] == "SEVERE"]

    # What a person does.

    def search(self, text):
        """Types a text and presses Enter; returns the cards."""
        return self._changed(lambda: self._type(text))

    def search_failing(self, text):
        """The error that a search gives."""
        return self._error(lambda: self._type(text))

    def upload(self, file):
        return self._changed(lambda: self._find("input[type=file]").send_keys(str(file)))

    def upload_refused(self, file):
        return self._error(lambda: self._find("input[type=file]").send_keys(str(file)))

    def example(self, text):
        return self._changed(lambda: self._find(f'.examples [data-text="{text}"]').click())

    def mode(self, name):
        return self._changed(lambda: self._find(f'#mode input[value="{name}"]').click())

    def choose(self, column, value):
        def act():
            box = self._find(f"#filter-{column} input")
            box.click()
            box.send_keys(value, Keys.ENTER, Keys.TAB)

        return self._changed(act)

    def at_most(self, column, value):
        """Types a number, each digit of which may be an answer of its own, and waits for that of all."""
        box = self._find(f"#filter-{column} input[type=number]")
        self._driver.execute_script("arguments[0].select()", box)
        box.send_keys(str(value), Keys.TAB)
        self._wait(lambda: re.search(rf"{column} <= {value}\b", self.sql()))
        return self.cards()

    def click(self, card):
        button = self._find(f'.card [data-id="{card.id}"]')
        return self._changed(lambda: self._driver.execute_script("arguments[0].click()", button))

    def show_more(self):
        return self._changed(lambda: self._find("#further").click())

    def back(self):
        self._changed(lambda: self._find("[data-clear]").click())
        return self.headline()

    @contextmanager
    def narrow(self):
        """The window as narrow as a telephone's, for a while."""
        size = {"width": 420, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        try:
            yield
        finally:
            self._driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def _type(self, text):
        box = self._find("#text textarea, #text input")
        box.clear()
        box.send_keys(text, Keys.ENTER)

    def _changed(self, act):
        """Does something and waits for another answer than the present one; returns the cards."""
        self._anew(".headline", act)
        return self.cards()

    def _error(self, act):
        self._anew(".note.error", act)
        return self._text(".note.error")

    def _anew(self, selector, act):
        """Does something and waits for an element that was not there before, or says something else."""
        mark = "document.querySelectorAll(arguments[0]).forEach(e => e.dataset.old = '1')"
        new = "const e = document.querySelector(arguments[0]); return e && !e.dataset.old"
        self._driver.execute_script(mark, selector)
        act()
        self._wait(lambda: self._driver.execute_script(new, selector))

    def _find(self, selector):
        return self._wait(lambda: self._driver.find_elements(By.CSS_SELECTOR, selector))[0]

    def _text(self, selector):
        return self._find(selector).get_property("innerText")

    def _wait(self, condition):
        return WebDriverWait(self._driver, WAIT_S, 0.05).until(lambda _: condition())


def program(name):
    found = shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is not installed; scripts/setup.sh browser installs it")
    return found
