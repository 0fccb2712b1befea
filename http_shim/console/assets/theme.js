// Which colours: as the system has them, or as chosen here. Runs before the page is painted.
(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => localStorage.getItem("inferd-theme") ?? "auto";
  const apply = () => {
    const dark = chosen() === "dark" || (chosen() === "auto" && system.matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
  };
  apply();
  system.addEventListener("change", apply);
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const words = { auto: ["Auto", "as the system"], light: ["Light", "light"], dark: ["Dark", "dark"] };
    const show = () => {
      const [text, told] = words[chosen()] ?? words.auto;
      button.textContent = `◐ ${text}`;
      button.setAttribute("aria-label", `Colours: ${told}`);
    };
    show();
    button.addEventListener("click", () => {
      const order = ["auto", "light", "dark"];
      const next = order[(order.indexOf(chosen()) + 1) % order.length];
      localStorage.setItem("inferd-theme", next);
      apply();
      show();
    });
  });
})();
