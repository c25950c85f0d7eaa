// Only browsers that know no modules run this file, so it keeps to what they know.
(function () {
  var box = document.getElementById("start-error");
  box.textContent = "This browser is too old for this page; take a current Chrome, Edge, Firefox or Safari.";
  box.hidden = false;
})();
