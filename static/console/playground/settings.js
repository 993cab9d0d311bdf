// The controls beside the chat: read, restored, kept in step with each other.

const FIELDS = ["temperature", "top_p", "max_tokens", "seed"];
const DEFAULTS = { system: "", temperature: 0.3, top_p: 0.95, max_tokens: 512, seed: null };

export class Settings {
  #form;
  #picker;
  #store;
  #onChange;
  #offered = "";

  constructor({ form, picker, store, onChange }) {
    this.#form = form;
    this.#picker = picker;
    this.#store = store;
    this.#onChange = onChange;
    this.#fill({ ...DEFAULTS, ...store.load() });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => this.#changed(event.target));
    picker.addEventListener("change", () => this.#changed(picker));
    form.elements.reset.addEventListener("click", () => {
      this.#fill(DEFAULTS);
      this.#changed(form);
    });
  }

  // An empty field is null and is left out of the request, so that the server's default counts.
  get values() {
    const elements = this.#form.elements;
    const values = { model: this.#picker.value, system: elements.system.value };
    for (const name of FIELDS) {
      const value = elements[name].value.trim();
      values[name] = value === "" || Number.isNaN(Number(value)) ? null : Number(value);
    }
    return values;
  }

  // models: [{name, is_ready, context_length}]; the choice survives a new list.
  offer(models) {
    // Redrawing would close a list that someone has just opened.
    const offered = JSON.stringify(models);
    if (offered === this.#offered) return;
    this.#offered = offered;
    const wanted = this.#picker.value || this.#store.load().model;
    this.#picker.replaceChildren(...models.map((model) => {
      const label = model.is_ready ? model.name : `${model.name} (not ready)`;
      return new Option(label, model.name);
    }));
    const first = models.find((model) => model.is_ready) ?? models[0];
    const chosen = models.find((model) => model.name === wanted) ?? first;
    if (chosen) this.#picker.value = chosen.name;
    this.#picker.disabled = models.length === 0;
  }

  #fill(values) {
    const elements = this.#form.elements;
    elements.system.value = values.system;
    for (const name of FIELDS) {
      elements[name].value = values[name] ?? "";
      const slider = this.#sliderOf(name);
      if (slider) slider.value = values[name] ?? slider.defaultValue;
    }
  }

  #changed(target) {
    const slider = this.#sliderOf(target.name);
    if (slider) slider.value = target.value;
    if (target.dataset?.for) this.#form.elements[target.dataset.for].value = target.value;
    this.#store.save(this.values);
    this.#onChange();
  }

  #sliderOf(name) {
    return this.#form.querySelector(`input[type="range"][data-for="${name}"]`);
  }
}
