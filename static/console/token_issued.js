// Copies a new token, and keeps a reload from issuing another one.

const page = document.getElementById("token-issued");
history.replaceState(null, "", page.dataset.listUrl);

document.getElementById("token-copy").addEventListener("click", async () => {
  const secret = document.getElementById("token-secret");
  const text = document.getElementById("token-copy-text");
  try {
    await navigator.clipboard.writeText(secret.textContent);
    text.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(secret);
    text.textContent = "Selected: press Ctrl+C"; // no clipboard outside https and localhost
  }
});
